"""Which Hugging Face architecture computes what a configuration describes, and how its files name things."""

from dataclasses import replace

from align.io.families.base import Family, Fields, FileTensor
from align.io.families.gpt2 import GPT2
from align.io.families.llama import Llama
from align.io.families.own import Own
from align.io.families.qwen2 import Qwen2
from align.io.families.qwen3 import Qwen3
from align.model.config import GPTConfig

TWINS: tuple[Family, ...] = (Llama(), Qwen2(), Qwen3(), GPT2())
"""The Hugging Face architectures, first choice first"""

OWN = Own()

ONE_LABEL = {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
"""What a sequence classifier's config.json says of a head that gives one score"""

_BY_TYPE = {family.model_type: family for family in (*TWINS, OWN)}

__all__ = [
    "ONE_LABEL",
    "OWN",
    "TWINS",
    "Family",
    "Fields",
    "FileTensor",
    "config_from",
    "family_in",
    "family_of",
    "why_no_twin",
]


def family_of(config: GPTConfig) -> Family:
    """The family in whose files a network of this shape is written: a Hugging Face one where there is one."""
    return next((family for family in TWINS if not family.misfits(config)), OWN)


def why_no_twin(config: GPTConfig) -> str | None:
    """Why no Hugging Face architecture computes ``config``; None where one does.

    Returns:
        One line that names the nearest architecture and each setting that keeps it from fitting.
    """
    if family_of(config) is not OWN:
        return None
    nearest = min(TWINS, key=lambda family: len(family.misfits(config)))
    return f"no Hugging Face twin; nearest is {nearest.architecture}, but {', '.join(nearest.misfits(config))}"


def family_in(fields: Fields) -> Family:
    """The family whose config.json this is.

    Raises:
        ValueError: its model_type, architecture or kind of weights is none that we read.
    """
    family = _BY_TYPE.get(kind := fields.get("model_type"))
    if family is None:
        raise fields.unsupported("model_type", kind, ", ".join(_BY_TYPE))
    for architecture in fields.get("architectures", []):
        if architecture not in (family.architecture, family.classifier):
            raise fields.unsupported("architectures", architecture, f"{family.architecture} or {family.classifier}")
        if architecture == family.classifier and (labels := _labels(fields)) != 1:
            raise fields.unsupported("num_labels", labels, "1 (a reward model)")
    if scheme := fields.get("quantization_config", None):
        raise fields.unsupported("quantization_config", scheme, "unquantized weights")
    return family


def config_from(fields: Fields) -> GPTConfig:
    """The configuration that a config.json describes, with None where a width or count is the derived one.

    Raises:
        ValueError: it asks for something our network does not do; the line names file, field and what is supported.
    """
    settings = family_in(fields).read(fields)
    try:
        config = GPTConfig.from_dict(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{fields.path}: {error}") from None
    return _shortened(config)


def _shortened(config: GPTConfig) -> GPTConfig:
    # Files state every width; a recipe leaves the derived ones out. Written so, the two compare equal.
    if config.resolved_kv_heads == config.heads:
        config = replace(config, kv_heads=None)
    if config.resolved_head_width * config.heads == config.width:
        config = replace(config, head_width=None)
    derived = replace(config, ff_width=None)
    return derived if derived.resolved_ff_width == config.resolved_ff_width else config


def _labels(fields: Fields) -> int:
    """How many labels a sequence classifier has, as transformers counts them: 2 where the file is silent."""
    named = fields.mapping("id2label")
    return len(named) if named else int(fields.get("num_labels", 2))
