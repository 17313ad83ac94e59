"""Write an export: weights, tokenizer, card and manifest, verified if asked for."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align.export.calibrated import check_calibrated, write_calibrated
from align.export.export_card import export_card
from align.export.export_settings import CALIBRATED, ExportSettings
from align.export.gguf_file import FILE, check_gguf, write_gguf
from align.export.int8 import check_int8, write_int8
from align.export.lineage import Stage, inherited_licence, licence_files, lineage
from align.export.rounding import rounded
from align.export.safetensors_dir import check_hf, check_range, write_hf, written_dtype
from align.export.source import Source
from align.export.verify import (
    Compared,
    Judge,
    Reading,
    Tolerance,
    Verification,
    check,
    longest,
    prompt_ids,
    tolerance,
    verify,
)
from align.io.atomic import replacing_directory
from align.io.manifest import read_manifest, weights_fingerprint, write_manifest
from align.tokenizer.prompts import Prompt


@dataclass(frozen=True)
class Check:
    """How to verify an export."""

    prompts: Sequence[Prompt]
    """To respond to (for a reward model: to score)"""
    max_new_tokens: int = 128
    """Maximum length of the responses that the judge compares, tokens"""
    judge: Judge | None = None
    """Gives responses a reward"""
    tolerance: Tolerance = field(default_factory=Tolerance)
    """Overrides ``verify.tolerance``, field by field"""


def export(
    source: Source,
    out: str | Path,
    settings: ExportSettings,
    *,
    checked: Check | None = None,
    data_cards: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write an export atomically.

    1. Refuse what the format can't express.
    2. Write weights, configuration and tokenizer into a hidden sibling of ``out``.
    3. Load them again and compare, if asked to.
    4. Write licence, card and manifest, and replace an earlier export.

    Args:
        source: what to export.
        out: a directory that does not exist, is empty, or is an earlier export, which is replaced.
        settings: of the export.
        checked: how to verify it; None: don't.
        data_cards: files to copy into ``data_cards/`` beside the model card.

    Returns:
        The manifest's ``export``: format, files with sizes in bytes, differences.

    Raises:
        ValueError: the format can't express the source, ``out`` is not an export, or the difference is too large.
        OSError: the disk is full; an earlier export at ``out`` is untouched.
    """
    check_out(Path(out))
    dtype = written_dtype(source, settings)
    check_range(source, dtype)  # 1
    write = _writer(source, settings)
    stages = lineage(source.manifest, source.directory)
    settings = replace(settings, licence=settings.licence or inherited_licence(stages, source.directory))
    with replacing_directory(out) as fresh:
        write(source, fresh, settings)  # 2
        files = {path.name: path.stat().st_size for path in sorted(fresh.iterdir()) if path.suffix in _WEIGHTS}
        found = None
        if checked is not None:
            found = _verified(source, fresh, settings, checked)  # 3
            allowed = tolerance(settings, str(dtype).removeprefix("torch."))
            check(found, _overridden(allowed, checked.tolerance))
        report = {**settings.summary(), "files": files, "verification": found.to_dict() if found else None}
        _finish(source, fresh, settings, stages, report=report, found=found, data_cards=data_cards)  # 4
    return report


_WEIGHTS = (".safetensors", ".gguf")


def check_out(out: Path) -> None:
    """Refuse to replace anything but an export.

    Raises:
        ValueError: ``out`` is a file, or a directory that no export wrote.
    """
    if out.is_file():
        raise ValueError(f"{out}: --out is a file; it must be a directory")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / "align.json").is_file() or "export" not in read_manifest(out):
        raise ValueError(f"{out}: --out has files that are not an export; give a new directory, or an earlier export")


def _writer(source: Source, settings: ExportSettings) -> Callable[[Source, Path, ExportSettings], None]:
    """The function that writes this format, after checking that it can."""
    if settings.format == "gguf":
        check_gguf(source, settings)
        return write_gguf
    check_hf(source)
    if settings.quantize == "int8":
        check_int8(source, settings)
        return write_int8
    if settings.quantize in CALIBRATED:
        check_calibrated(source, settings)
        return write_calibrated
    return write_hf


def open_reading(source: Source, directory: Path, settings: ExportSettings, *, context: int) -> Reading:
    """Load an export in the program it is for.

    Args:
        source: what was exported.
        directory: of the export.
        settings: of the export.
        context: longest sequence to compute, tokens.

    Raises:
        ModuleNotFoundError: the program is not installed.
        ValueError: it can't load the export.
    """
    if settings.format == "gguf":
        from align.export.verify_llama import LlamaReading

        return LlamaReading(directory / FILE, context=context, vocab_size=source.network.config.vocab_size)
    from align.export.verify_transformers import TransformersReading

    return TransformersReading(directory, scalar=source.scalar)


def open_adapter(source: Source) -> Reading | None:
    """Load the adapter that a source was merged from in peft, over its base; None if it is no adapter.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: transformers or peft can't load base or adapter.
    """
    if source.adapter is None:
        return None
    from align.export.verify_transformers import TransformersReading

    return TransformersReading(source.adapter.base, scalar=source.scalar, adapter=source.adapter.directory)


def _verified(source: Source, directory: Path, settings: ExportSettings, checked: Check) -> Verification:
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in checked.prompts]
    context = longest(ids, checked.max_new_tokens, source.network.config.context)
    reading = open_reading(source, directory, settings, context=context)
    compared = Compared(reading, rounded(source, settings), open_adapter(source))
    try:
        return verify(source, compared, checked.prompts, max_new_tokens=checked.max_new_tokens, judge=checked.judge)
    finally:
        reading.close()


def _overridden(base: Tolerance, own: Tolerance) -> Tolerance:
    return replace(base, **{name: value for name, value in vars(own).items() if value is not None})


def _finish(
    source: Source,
    directory: Path,
    settings: ExportSettings,
    stages: list[Stage],
    *,
    report: dict[str, Any],
    found: Verification | None,
    data_cards: Sequence[Path],
) -> None:
    """Write licence, data cards, model card and manifest."""
    for licence in licence_files(stages, source.directory):
        shutil.copyfile(licence, directory / licence.name)
    for card in data_cards:
        (directory / "data_cards").mkdir(exist_ok=True)
        shutil.copyfile(card, directory / "data_cards" / card.name)
    card_text = export_card(source, settings, stages, files=report["files"], verification=found, data_cards=data_cards)
    (directory / "README.md").write_text(card_text, encoding="utf-8")
    origin = {"source": source.name, "read": source.origin, "weights": _weights_of(source)}
    kept = {name: value for name, value in source.manifest.items() if name not in ("libraries", "schema_version")}
    write_manifest(directory, {**kept, "tokenizer": source.tokenizer.fingerprint, "export": origin | report})


def _weights_of(source: Source) -> str | None:
    """The source's fingerprint, if it is a model directory."""
    return weights_fingerprint(source.directory) if source.origin.startswith("model directory") else None
