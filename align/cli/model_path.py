"""Where a model is: what verbs that take a model accept, and what they say when there is none."""

from collections.abc import Sequence
from pathlib import Path

from align.cli.errors import UsageError

_SHOWN = 3  # folders named in a hint


def model_directory(source: str | Path) -> Path:
    """The model directory that a word of the command line means.

    Args:
        source: a model directory, the folder of a stage (which keeps one in ``model/``), or a Hub id.

    Returns:
        Path: has a config.json.

    Raises:
        FileNotFoundError: there is no model; the line says what was looked for, and where near by there is one.
    """
    from align.model import locate
    from align.model.replacing import recover

    path = Path(source).expanduser()
    if not path.is_dir() or _is_model(path):
        return locate(source)
    inner = path / "model"
    if not inner.exists():
        recover(inner)
    if _is_model(inner):
        return inner
    raise FileNotFoundError(
        f"{path} holds no model: looked for {path / 'config.json'} and {inner / 'config.json'}{_hint(path)}"
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _hint(path: Path) -> str:
    """Where else there is a model: in folders of this one, or in the one that this is a part of."""
    inside = [folder for folder in sorted(path.iterdir()) if _is_model(folder) or _is_model(folder / "model")]
    if inside:
        return f"; a stage's folder such as {' or '.join(map(str, inside[:_SHOWN]))} has one"
    above = path.resolve().parent
    return f"; did you mean {above / 'model'}?" if _is_model(above / "model") else ""


def named_models(words: Sequence[str]) -> dict[str, Path]:
    """The models that words of the command line name.

    Args:
        words: each ``NAME=PATH`` or ``PATH``, whose name then is its folder's, ``model/`` left out.

    Returns:
        dict: name to model directory, in the order given.

    Raises:
        UsageError: two have one name, or a name is empty.
        FileNotFoundError: as for ``model_directory``.
    """
    models: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            directory = model_directory(word)
            name = model_name(directory)
        else:
            directory = model_directory(path)
        if not name:
            raise UsageError(f"{word}: the name before = is empty; give NAME=PATH")
        if name in models:
            raise UsageError(f"{models[name]} and {directory} are both named {name!r}; give NAME=PATH")
        models[name] = directory
    return models


def model_name(directory: Path) -> str:
    """What to call the model in a directory: its folder's name, or that of the stage whose ``model/`` it is."""
    resolved = directory.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name
