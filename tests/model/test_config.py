import json
import subprocess
import sys
from dataclasses import replace

import pytest

from align.model.config import GPTConfig
from align.model.rope_scaling import Llama3Scaling

IMPOSSIBLE = [
    ({"layers": 0}, r"layers\D*0\b"),
    ({"vocab_size": 3.5}, r"vocab_size.*3\.5"),
    ({"heads": True}, "heads.*True"),
    ({"ff_width": -1}, "ff_width.*-1"),
    ({"heads": 6, "kv_heads": 4}, r"kv_heads\D*4\b.*\bheads\D*6\b"),
    ({"width": 100, "heads": 6}, r"\bheads\D*6\b.*width\D*100\b.*head_width"),
    ({"head_width": 7}, r"head_width\D*7\b"),
    ({"width": 33, "heads": 3, "positions": "sinusoidal"}, r"width\D*33\b"),
    ({"norm": "batchnorm"}, "norm.*'batchnorm'.*'rmsnorm'.*'layernorm'"),
    ({"norm_placement": "sandwich"}, "norm_placement.*'sandwich'.*'pre'.*'post'"),
    ({"positions": "alibi"}, "positions.*'alibi'.*'rope'.*'learned'.*'sinusoidal'"),
    ({"feed_forward": "relu"}, "feed_forward.*'relu'.*'swiglu'.*'gelu'"),
    ({"positions": "learned", "rope_scaling": Llama3Scaling()}, "rope_scaling.*positions.*rope"),
    ({"dropout": 1.0}, r"dropout.*1\.0.*\[0, 1\)"),
    ({"norm_eps": 0.0}, r"norm_eps.*0\.0"),
    ({"init_std": float("nan")}, "init_std.*nan"),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE)
def test_an_impossible_setting_is_named_with_its_value_and_the_cure(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        GPTConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"factor": 0.5}, "rope_scaling.factor"),
        ({"low_freq_factor": 0}, "rope_scaling.low_freq_factor"),
        ({"high_freq_factor": 1.0}, "rope_scaling.high_freq_factor"),
        ({"original_context": 0}, "rope_scaling.original_context"),
    ],
)
def test_an_impossible_rope_scaling_is_named(settings, name):
    with pytest.raises(ValueError, match=name):
        Llama3Scaling(**settings)


def test_widths_that_are_left_open():
    """8/3 of 100 is 266.7, the next multiple of 32 is 288; of 384 it is 1024 exactly; gelu has 4 times the width."""
    assert GPTConfig(width=384).resolved_ff_width == 1024
    assert GPTConfig(width=100, heads=2).resolved_ff_width == 288
    assert GPTConfig(width=100, heads=2, feed_forward="gelu").resolved_ff_width == 400
    assert GPTConfig(width=100, heads=2, ff_width=7).resolved_ff_width == 7
    config = GPTConfig(width=100, heads=2)
    assert (config.resolved_kv_heads, config.resolved_head_width) == (2, 50)
    assert replace(config, head_width=8, kv_heads=1).resolved_head_width == 8


def test_to_dict_and_back_through_json():
    config = GPTConfig(kv_heads=2, rope_scaling=Llama3Scaling(factor=4.0), norm="layernorm")
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_names_its_nearest():
    with pytest.raises(ValueError, match="'layer'.*'layers'"):
        GPTConfig.from_dict({"layer": 2})
    with pytest.raises(ValueError, match="'faktor'.*'factor'"):
        GPTConfig.from_dict({"rope_scaling": {"kind": "LinearScaling", "faktor": 2}})
    with pytest.raises(ValueError, match="rope_scaling.kind.*None.*LinearScaling"):
        GPTConfig.from_dict({"rope_scaling": {"factor": 2}})


def test_the_shape_can_be_read_without_torch():
    code = "import sys; from align.model.config import GPTConfig; from align.model import GPTConfig as G; " \
        "assert G is GPTConfig; assert 'torch' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_has_a_home():
    import align.model

    for name in align.model.__all__:
        assert getattr(align.model, name).__name__ == name
    with pytest.raises(AttributeError, match="'GPT5'"):
        _ = align.model.GPT5
