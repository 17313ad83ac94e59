"""Which Hugging Face architecture is equivalent to a configuration, and how its files name things."""

from dataclasses import replace

from align.io.families.family import ConfigJson, Family, FileTensor
from align.io.families.gemma import Gemma2, Gemma3
from align.io.families.gpt2 import GPT2
from align.io.families.gpt_neox import GPTNeoX
from align.io.families.llama import Llama
from align.io.families.mistral import Mistral
from align.io.families.olmo2 import Olmo2
from align.io.families.own import Own
from align.io.families.qwen2 import Qwen2
from align.io.families.qwen3 import Qwen3
from align.io.families.smollm3 import SmolLM3
from align.model.config import GPTConfig

TWINS: tuple[Family, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Olmo2(),
    Gemma2(),
    Gemma3(),
    GPT2(),
    GPTNeoX(),
)
"""The Hugging Face architectures, in order of preference"""

OWN = Own()

ONE_LABEL = {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
"""Fields of config.json for a sequence classifier with a scalar head"""

_BY_TYPE = {family.model_type: family for family in (*TWINS, OWN)}

__all__ = [
    "ONE_LABEL",
    "OWN",
    "TWINS",
    "Family",
    "ConfigJson",
    "FileTensor",
    "config_from",
    "family_in",
    "family_of",
    "why_no_twin",
]


def family_of(config: GPTConfig) -> Family:
    """The family to write this configuration as: a Hugging Face one if any fits."""
    return next((family for family in TWINS if not family.misfits(config)), OWN)


def why_no_twin(config: GPTConfig) -> str | None:
    """Why no Hugging Face architecture is equivalent to ``config``; None if one is.

    Returns:
        One line that names the nearest architecture and the settings it does not support.
    """
    if family_of(config) is not OWN:
        return None
    nearest = min(TWINS, key=lambda family: len(family.misfits(config)))
    misfits = ", ".join(nearest.misfits(config))
    return f"no equivalent Hugging Face architecture; nearest is {nearest.architecture}, but {misfits}"


def family_in(fields: ConfigJson) -> Family:
    """The family of a config.json.

    Raises:
        ValueError: its model_type, architecture, quantization, or the way it attends is not supported.
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
    if layers := fields.get("per_layer_config", None):
        raise fields.unsupported("per_layer_config", layers, "the same settings for all layers")
    fields.only("is_causal", True, default=True)
    return family


def config_from(fields: ConfigJson) -> GPTConfig:
    """The configuration that a config.json describes, with None where a width or count is the derived one.

    Raises:
        ValueError: it asks for something our network does not support; the message names file, field and what is.
    """
    family = family_in(fields)
    settings = family.read(fields.over(family.defaults))
    try:
        config = GPTConfig.from_dict(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{fields.path}: {error}") from None
    return _shortened(config)


def _shortened(config: GPTConfig) -> GPTConfig:
    # Files state every width, recipes omit the derived ones: omitting them here makes the two compare equal.
    if config.resolved_kv_heads == config.heads:
        config = replace(config, kv_heads=None)
    if config.resolved_head_width * config.heads == config.width:
        config = replace(config, head_width=None)
    if config.attention_scale == config.resolved_head_width**-0.5:
        config = replace(config, attention_scale=None)
    if config.window_layers == tuple(range(config.layers)):
        config = replace(config, window_layers=None)
    if config.window_rope_theta == config.rope_theta and config.rope_scaling is None:
        config = replace(config, window_rope_theta=None)
    derived = replace(config, ff_width=None)
    return derived if derived.resolved_ff_width == config.resolved_ff_width else config


def _labels(fields: ConfigJson) -> int:
    """Number of labels of a sequence classifier, by transformers' rule: 2 if the file does not say."""
    named = fields.mapping("id2label")
    return len(named) if named else int(fields.get("num_labels", 2))
