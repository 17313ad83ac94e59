import json
import subprocess
import sys
from dataclasses import replace

import pytest

from align.model.config import GPTConfig, RopeScaling

IMPOSSIBLE = [
    ({"layers": 0}, "layers is 0; it must be an integer, at least 1"),
    ({"vocab_size": 3.5}, "vocab_size is 3.5; it must be an integer, at least 1"),
    ({"heads": True}, "heads is True; it must be an integer, at least 1"),
    ({"ff_width": -1}, "ff_width is -1; it must be an integer, at least 1"),
    ({"heads": 6, "kv_heads": 4}, "kv_heads is 4; it must be a divisor of heads (6)"),
    ({"width": 100, "heads": 6}, "heads is 6; it must be a divisor of width (100), or set head_width"),
    ({"head_width": 7}, "head_width is 7; it must be even"),
    ({"width": 33, "heads": 3, "positions": "sinusoidal"}, "width is 33; it must be even"),
    ({"norm": "batchnorm"}, "norm is 'batchnorm'; it must be one of ('rmsnorm', 'layernorm')"),
    ({"norm_placement": "sandwich"}, "norm_placement is 'sandwich'; it must be one of ('pre', 'post')"),
    ({"positions": "alibi"}, "positions is 'alibi'; it must be one of"),
    ({"feed_forward": "relu"}, "feed_forward is 'relu'; it must be one of"),
    ({"positions": "learned", "rope_scaling": RopeScaling()}, "it must be None unless positions is rope"),
    ({"dropout": 1.0}, "dropout is 1.0; it must be in [0, 1)"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0"),
    ({"init_std": float("nan")}, "init_std is nan; it must be above 0"),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE)
def test_an_impossible_setting_is_named_with_its_value_and_the_cure(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        GPTConfig(**settings)
    assert message in str(error.value)
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
        RopeScaling(**settings)


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
    config = GPTConfig(kv_heads=2, rope_scaling=RopeScaling(factor=4.0), norm="layernorm")
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_names_its_nearest():
    with pytest.raises(ValueError, match="unknown setting 'layer'; did you mean 'layers'"):
        GPTConfig.from_dict({"layer": 2})
    with pytest.raises(ValueError, match="did you mean 'factor'"):
        GPTConfig.from_dict({"rope_scaling": {"faktor": 2}})


def test_the_shape_can_be_read_without_torch():
    code = "import sys; from align.model.config import GPTConfig; from align.model import GPTConfig as G; " \
        "assert G is GPTConfig; assert 'torch' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_has_a_home():
    import align.model

    for name in align.model.__all__:
        assert getattr(align.model, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'GPT5'"):
        _ = align.model.GPT5
