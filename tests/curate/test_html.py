"""The pages of `align doctor` and `align data clean`."""

import re

import pytest

from align.curate import page as doctor
from align.curate.cleaning import page as cleaning
from align.curate.html import page


@pytest.mark.parametrize("module", [doctor, cleaning])
def test_every_colour_is_defined_for_light_and_dark(module) -> None:
    """But for `--mark`, which a finding's class sets."""
    text = page("A & B", "", style=module._STYLE, light=module._LIGHT, dark=module._DARK)
    used = set(re.findall(r"var\(--(\w+)\)", text)) - {"mark"}
    light, dark = (set(re.findall(r"--(\w+):", colours)) for colours in re.findall(r":root \{(.*?)\}", text))
    assert used <= light == dark
    assert "<h1>A &amp; B</h1>" in text
