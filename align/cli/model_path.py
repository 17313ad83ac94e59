"""Where a model is: what verbs that take a model accept, and what they say when there is none."""

from pathlib import Path

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
