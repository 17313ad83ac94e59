"""The model card of an export: what it is, its lineage, its difference from the source, its intended use."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE
from align.export.lineage import Stage, data_origin, title
from align.export.source import Source
from align.export.verify import Verification
from align.io.families import family_of
from align.io.provenance import front_matter, hub_datasets, origin_of

_INTENDED = {
    "reward": "Scoring answers to prompts like those it was trained on, to compare models or to train a policy.",
    "pretrain": "Continuing text like its training data; a starting point for fine-tuning.",
}
_INTENDED_CHAT = "Responding to prompts like its training data; studying how alignment changes a small model."
_LIMITS = (
    "It was trained on the data above and nothing else. It has not been evaluated for safety, states falsehoods with "
    "confidence, and is not meant for decisions about people."
)
_LIMIT_REWARD = " Its score is a learned proxy: optimized too hard, it stops measuring what it was meant to."


def export_card(
    source: Source,
    settings: ExportSettings,
    stages: Sequence[Stage],
    *,
    files: Mapping[str, int],
    verification: Verification | None,
    data_cards: Sequence[Path],
) -> str:
    """The model card.

    Args:
        source: what was exported.
        settings: of the export; ``licence`` is the one stated.
        stages: the lineage, the model itself first.
        files: name to bytes of what was written.
        verification: the measured differences; None: not verified.
        data_cards: cards of the data, in ``data_cards/`` beside this one.

    Returns:
        str: Markdown with the Hub's metadata header.
    """
    scalar, stage = source.scalar, source.manifest["stage"]
    parts = [
        _front(source, settings, stages),
        f"# {title(stages)}, {_short(source.network.num_parameters())} parameters",
        f"Exported by [align](https://pypi.org/project/lightning-align/) from {source.origin}.",
        _shape(source, settings, files),
        "## Use\n\n" + _use(source, settings),
        "## Lineage\n\n" + _lineage(stages),
        "## Data\n\n" + _data(stages, source.directory, data_cards),
        "## Metrics of the last stage\n\n" + _metrics(source.manifest.get("metrics", {})),
        "## Difference from the source\n\n" + _difference(verification),
        "## Intended use\n\n" + (settings.intended_use or _INTENDED.get(stage, _INTENDED_CHAT)),
        "## Limits\n\n" + (settings.limits or _LIMITS + (_LIMIT_REWARD if scalar else "")),
        "## Licence\n\n" + (settings.licence or "Not stated: ask the authors of the model before you use or share it."),
        "## Recipes\n\n" + _recipes(stages),
    ]
    return "\n\n".join(parts) + "\n"


def _front(source: Source, settings: ExportSettings, stages: Sequence[Stage]) -> str:
    data = {name: digest for stage in stages for name, digest in stage.manifest.get("data", {}).items()}
    return front_matter(
        {
            "license": settings.licence,
            "library_name": "gguf" if settings.format == "gguf" else "transformers",
            "pipeline_tag": "text-classification" if source.scalar else "text-generation",
            "base_model": origin_of(stages[-1].directory).hub_id,
            "datasets": hub_datasets(data),
            "tags": ["lightning-align", source.manifest["stage"]],
        }
    )


def _shape(source: Source, settings: ExportSettings, files: Mapping[str, int]) -> str:
    config = source.network.config
    weights = "as in the source" if settings.dtype == "auto" else settings.dtype
    rows = {
        "architecture": family_of(config).classifier if source.scalar else family_of(config).architecture,
        "shape": f"{config.layers} layers, width {config.width}, {config.heads} heads, context {config.context}, "
        f"vocabulary {config.vocab_size}",
        "format": settings.format,
        "weights": weights if settings.quantize == "none" else f"{settings.quantize}, the rest {weights}",
        "files": ", ".join(f"`{name}` ({size:,} bytes)" for name, size in files.items()),
        "tokenizer": f"`{source.tokenizer.fingerprint[:16]}`",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _use(source: Source, settings: ExportSettings) -> str:
    if settings.format == "gguf":
        return f"```\nllama-cli -m {FILE} --jinja\nllama-server -m {FILE} --jinja\n```"
    kind = "AutoModelForSequenceClassification" if source.scalar else "AutoModelForCausalLM"
    return (
        f"```python\nfrom transformers import {kind}, AutoTokenizer\n\n"
        f'model = {kind}.from_pretrained("this directory")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this directory")\n```'
    )


def _lineage(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        manifest = stage.manifest
        weights = (manifest.get("parent") or {}).get("weights")
        rows.append(
            f"| {manifest['stage']} | `{_shown(stage.directory)}` | {manifest.get('step', '')} | "
            f"{f'`{weights[:16]}`' if weights else ''} | {stage.state} |"
        )
    head = "| stage | directory | optimizer steps | parent weights | directory |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def _shown(directory: str) -> str:
    """A directory as it was given, or what others call the model that is there, if that is a path of one machine."""
    origin = origin_of(directory)
    return origin.hub_id or (origin.name if Path(directory).is_absolute() else directory)


def _data(stages: Sequence[Stage], directory: Path, cards: Sequence[Path]) -> str:
    lines = []
    for stage in stages:
        for file, digest in stage.manifest.get("data", {}).items():
            origin = data_origin(file, directory)
            lines.append(f"- {stage.manifest['stage']}: `{file}` `{digest[:16]}`" + (f": {origin}" if origin else ""))
    lines += [f"- card: [{card.stem}](data_cards/{card.name})" for card in cards]
    return "\n".join(lines) or "Not recorded."


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_number(value)} |" for name, value in sorted(metrics.items())]
    return "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "Not recorded."


def _difference(verification: Verification | None) -> str:
    if verification is None:
        return "Not measured (`--verify` does)."
    values = verification.to_dict()
    rows = [f"| {name.replace('_', ' ')} | {_number(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _recipes(stages: Sequence[Stage]) -> str:
    parts = [
        f"### {stage.manifest['stage']}\n\n```json\n{json.dumps(stage.manifest['recipe'], indent=2, default=str)}\n```"
        for stage in stages
        if stage.manifest.get("recipe")
    ]
    return "\n\n".join(parts) or "Not recorded."


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _short(count: int) -> str:
    """12345678 -> 12.3M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
