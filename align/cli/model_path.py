"""The model directories that words of a command line name."""

from collections.abc import Sequence
from pathlib import Path

from align.cli.errors import UsageError

_SHOWN = 3  # folders in a hint


def model_directory(source: str | Path) -> Path:
    """The model directory that a word of the command line names.

    Args:
        source: a model directory, the folder of a stage (with a model directory in ``model/``), a GGUF file or a
            directory with one, or a Hub id.

    Returns:
        Path: has a config.json.

    Raises:
        FileNotFoundError: there is no model; the message names the files looked for, and a model nearby.
    """
    from align.io.atomic import recover
    from align.io.gguf.container import gguf_in
    from align.io.location import adapter_hint, locate
    from align.io.manifest import is_adapter

    path = Path(source).expanduser()
    if not path.is_dir() or _is_model(path):
        return locate(source)
    inner = path / "model"
    if not inner.exists():
        recover(inner)
    if _is_model(inner):
        return inner
    if gguf_in(path) is not None:
        return locate(path)
    if is_adapter(path):
        raise FileNotFoundError(adapter_hint(path, str(source)))
    raise FileNotFoundError(
        f"{path} holds no model: looked for {path / 'config.json'} and {inner / 'config.json'}{_hint(path)}"
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _hint(path: Path) -> str:
    """A hint at a model in a subfolder or in the parent folder."""
    inside = [folder for folder in sorted(path.iterdir()) if _is_model(folder) or _is_model(folder / "model")]
    if inside:
        return f"; a stage's folder such as {' or '.join(map(str, inside[:_SHOWN]))} has one"
    above = path.resolve().parent
    return f"; did you mean {above / 'model'}?" if _is_model(above / "model") else ""


def named_models(words: Sequence[str], *, several: bool = False) -> dict[str, list[Path]]:
    """The models that words of the command line name.

    Args:
        words: each ``NAME=PATH``, or ``PATH``, named after its folder without ``model/``.
        several: a word may have several paths separated by commas, the runs of one model.

    Returns:
        dict: name to model directories, in the order given; one each unless ``several``.

    Raises:
        UsageError: two models have the same name, or a name or a path is empty.
        FileNotFoundError: as for ``model_directory``.
    """
    models: dict[str, list[Path]] = {}
    for word in words:
        name, equals, paths = word.partition("=")
        if not equals or Path(word).exists():
            name, paths = "", word
        elif not name or not paths:
            raise UsageError(f"{word}: the {'name before' if paths else 'path after'} = is empty; give NAME=PATH")
        directories = [model_directory(path) for path in (paths.split(",") if several else [paths])]
        name = name or model_name(directories[0])
        if name in models:
            raise UsageError(f"{models[name][0]} and {directories[0]} are both named {name!r}; give NAME=PATH")
        models[name] = directories
    return models


def model_name(directory: Path) -> str:
    """The name of the model in a directory: that of its folder, or of the stage whose ``model/`` it is."""
    resolved = directory.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name
