"""Files of repositories on the Hub, and its errors in one line that says what to do.

Imports nothing of align, so every room may use it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ON_HUB = re.compile(r"([A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)(?:/(.+\.gguf))?")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the Hub's errors into one line that says what to do.

    Raises:
        FileNotFoundError: the Hub could not provide what the block asks it for.
    """
    try:
        yield
    except Exception as error:  # HTTP clients have types of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name}: no such file or directory, and the Hub could not provide it: {reason}; {_way_out(name, error)}"
        ) from None


def _way_out(name: str, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "accept the model's conditions on its page, and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return "check the name; a private model needs `hf auth login`"
    repository = "/".join(name.split("/")[:2])
    offline = "unset HF_HUB_OFFLINE, or " if HF_HUB_OFFLINE else ""
    return (
        f"{offline}give a local directory: `hf download {repository} --local-dir DIR` on a machine that reaches the "
        "Hub writes one"
    )


def dataset_commit(name: str) -> str:
    """The newest commit of a data set on the Hub.

    Args:
        name: ``owner/name``.

    Raises:
        FileNotFoundError: the Hub could not provide it.
    """
    import huggingface_hub

    with explained(name):
        return str(huggingface_hub.HfApi().dataset_info(name).sha)


def gguf_from_hub(name: str) -> Path | None:
    """A GGUF file of a Hub repository, downloaded unless the Hub's cache has it.

    Args:
        name: ``owner/name/FILE.gguf``, or ``owner/name`` of a repository with a single GGUF file.

    Returns:
        The file; None if the name has neither form or is one of a local folder, or the repository has no such file.

    Raises:
        FileNotFoundError: the Hub could not provide it.
        ValueError: the repository has several such files.
    """
    named = _ON_HUB.fullmatch(name)
    if named is None:
        return None
    repository, file = named.groups()
    if Path(name).parent.is_dir() if file else name.endswith(".gguf"):
        return None
    import huggingface_hub

    if file is None:
        with explained(name):
            found = sorted(path for path in huggingface_hub.list_repo_files(repository) if path.endswith(".gguf"))
        if len(found) > 1:
            raise ValueError(f"{name}: has {len(found)} GGUF files; name one of them, such as {name}/{found[0]}")
        if not found:
            return None
        file = found[0]
    with explained(name):
        return Path(huggingface_hub.hf_hub_download(repository, file))
