import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule


def test_cosine_by_hand():
    """Warm-up of 1 step: 1/2, then cosine over steps 1..5 down to 0.2: progress 0, 1/4, 1/2, 3/4, 1."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=1, final_factor=0.2)
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    expected = [0.5, 1.0, quarter, 0.6, 0.2 + 0.8 * 0.5 * (1 - math.cos(math.pi / 4)), 0.2]
    assert [schedule.factor(step, 6) for step in range(6)] == pytest.approx(expected)


def test_linear_by_hand():
    schedule = ScheduleConfig(kind="linear", final_factor=0.0)
    assert [schedule.factor(step, 5) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_wsd_is_constant_then_falls_over_the_last_share():
    """Ten steps, share 0.3: the fall starts at step 7 and reaches 0 at step 9."""
    schedule = ScheduleConfig(kind="wsd", warmup_steps=0, final_factor=0.0, decay_share=0.3)
    assert [schedule.factor(step, 10) for step in range(10)] == pytest.approx([1] * 8 + [0.5, 0])


def test_constant_after_warmup():
    """Warm-up of 3: 1/4, 2/4, 3/4, then 1: the first step already moves."""
    schedule = ScheduleConfig(kind="constant", warmup_steps=3)
    assert [schedule.factor(step, 9) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


@given(
    kind=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    warmup=st.integers(0, 20),
    total=st.integers(21, 300),
    final=st.floats(0, 1),
)
def test_factor_rises_then_never_rises_again(kind: str, warmup: int, total: int, final: float):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, final_factor=final)
    factors = [schedule.factor(step, total) for step in range(total + 3)]
    assert all(a < b for a, b in zip(factors[:warmup], factors[1:warmup], strict=False))
    assert all(a >= b - 1e-12 for a, b in zip(factors[warmup:], factors[warmup + 1 :], strict=False))
    assert 0 < factors[0] <= 1
    assert min(factors[warmup:]) >= final - 1e-12


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerConfig(lr=0), r"optimizer\.lr\D*0\b"),
        (lambda: OptimizerConfig(weight_decay=-1), r"optimizer\.weight_decay.*-1"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"optimizer\.betas.*\(0\.9, 1\.0\)"),
        (lambda: ScheduleConfig(warmup_steps=-1), r"schedule\.warmup_steps.*-1"),
        (lambda: ScheduleConfig(warmup_steps=1.5), r"schedule\.warmup_steps.*1\.5"),
        (lambda: ScheduleConfig(final_factor=2), r"schedule\.final_factor\D*2\b"),
        (lambda: ScheduleConfig(decay_share=0), r"schedule\.decay_share\D*0\b"),
    ],
)
def test_impossible_settings_are_named(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    layer, norm, frozen = nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(3, 3)
    frozen.requires_grad_(False)
    parameters = [*layer.parameters(), *norm.parameters(), *frozen.parameters()]
    decayed, plain = build_optimizer(parameters, OptimizerConfig(lr=0.1, weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [p is layer.weight for p in decayed["params"]] == [True]
    assert plain["weight_decay"] == 0
    assert {id(p) for p in plain["params"]} == {id(layer.bias), id(norm.weight), id(norm.bias)}


def test_one_adamw_step_by_hand():
    """From 1 with gradient 1: both bias-corrected means are 1, so the step is lr (1 + decay): 1 - 0.1 - 0.1 * 0.5."""
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = build_optimizer([weight], OptimizerConfig(lr=0.1, weight_decay=0.5, eps=1e-12))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.item() == pytest.approx(0.85)


@pytest.mark.parametrize(("total", "steps"), [(5, 0), (9, 0), (10, 1), (25, 2), (200, 20)])
def test_a_share_of_warmup_is_always_shorter_than_the_run(total: int, steps: int):
    """A tenth of the run, rounded down, so that the default refuses no run."""
    assert ScheduleConfig().warmup(total) == steps
    optimizer = build_optimizer([nn.Parameter(torch.ones(1, 1))], OptimizerConfig(lr=0.1))
    build_schedule(optimizer, ScheduleConfig(), total)


def test_an_unset_rate_is_an_error_outside_a_stage():
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        build_optimizer([nn.Parameter(torch.ones(1, 1))], OptimizerConfig())


def test_a_warmup_as_long_as_the_run_is_a_warning():
    optimizer = build_optimizer([nn.Parameter(torch.ones(1, 1))], OptimizerConfig(lr=0.1))
    with pytest.warns(UserWarning, match=r"schedule\.warmup_steps\D*5\b.*\b5\b"):
        build_schedule(optimizer, ScheduleConfig(warmup_steps=5), 5)
