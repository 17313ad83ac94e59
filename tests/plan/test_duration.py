"""Time, cost and sweeps, derived by hand on a made-up device: 1 TFLOP/s, 100 GB/s, 3.60 USD per hour."""

from dataclasses import replace

import pytest
from planned_jobs import DEVICE, ROLLOUT, TINY, job

from align.plan.duration import Utilisation, cost_of, duration_of
from align.plan.flops import flops_of, flops_per_token
from align.plan.hardware import Hardware, find, known, recognise, rented
from align.plan.job import Volume
from align.plan.measure import measure
from align.plan.plan import plan_of
from align.plan.precision import PRECISIONS
from align.plan.strategy import Strategy
from align.plan.sweep import sweep
from align.plan.volume import DataSizes, rollout_volume, training_volume

HALF = Utilisation(0.5, "a test")


def test_training_is_flops_over_what_is_reached():
    one = job()
    flops = flops_of(one)
    found = duration_of(one, flops, DEVICE, HALF)
    assert found.training == found.total == flops.model / 0.5e12
    assert cost_of(3600.0, 2, DEVICE) == pytest.approx(7.2)
    narrow = replace(one, precision=PRECISIONS["bf16-mixed"])
    assert duration_of(narrow, flops, DEVICE, HALF).total == found.total / 4
    assert duration_of(one, flops, replace(DEVICE, flops={"float32": None}), HALF) is None


def test_gradients_that_take_longer_than_computing_are_waited_for():
    """DDP on 2: an all-reduce of 4 P bytes moves as much over 0.5 GB/s one way, 10 times, while computing."""
    one = job(strategy=Strategy(data=2), volume=Volume(10, 2560.0, 32.0))
    flops = flops_of(one)
    computing = flops.model / (2 * 0.5e12)
    bytes_moved = 10 * 4 * sum(weight.numel for weight in one.policy.base())
    found = duration_of(one, flops, replace(DEVICE, interconnect=1e9), HALF)
    assert found.communication == pytest.approx(bytes_moved / 0.5e9 - computing)
    fast = replace(DEVICE, interconnect=1e20)
    assert duration_of(one, flops, fast, HALF).communication == 0


def test_tensor_parallelism_waits_for_every_block():
    """Per step 3 blocks x 4 all-reduces of 4 x 32 x 64 float32, 2 x 1/2 of it moved."""
    one = job(strategy=Strategy(tensor=2))
    found = duration_of(one, flops_of(one), DEVICE, HALF)
    assert found.communication == pytest.approx(10 * 3 * 4 * (4 * 4 * 32 * 64) / 50e9)


def test_decoding_reads_the_weights_for_each_token():
    """12 steps of 16 rows: the weights, and a cache of 8 + 6 slots, over 100 GB/s; that is slower than computing."""
    one = replace(job(rollout=ROLLOUT), volume=rollout_volume(job(rollout=ROLLOUT), 2))
    found = duration_of(one, flops_of(one), replace(DEVICE, flops={"float32": 1e18}), HALF)
    weights = 4 * sum(weight.numel for weight in one.policy.base())
    cache = 2 * 4 * 3 * 16 * 32 * 14
    prefill = 16 * 8 * flops_per_token(one.policy, 20, forward_only=True).total / 0.5e18
    assert found.sampling == pytest.approx(12 * (weights + cache) / 100e9 + prefill)
    measured = replace(HALF, decode_seconds=0.25)
    assert duration_of(one, flops_of(one), DEVICE, measured).sampling == pytest.approx(3.0, rel=0.01)


def test_volumes():
    """8 steps of 2 x 4 rows of 30 tokens; a precomputed reference reads 100 records once."""
    sizes = DataSizes(100, 30.0, 40, 15.0)
    found = training_volume(job(accumulate=2), sizes, 8, reads_reference="once", reads_mismatched=True)
    assert (found.trained, found.read) == (1920.0, {"reference": 3000.0, "policy": 1920.0})
    assert training_volume(job(), sizes, None).trained is None
    found = rollout_volume(job(rollout=ROLLOUT), 6)
    # 3 iterations of 16 responses of 12 tokens; the 8 tokens of a prompt are computed once for two responses.
    assert (found.iterations, found.sampled, found.trained) == (3, 576.0, 3 * 16 * 16.0)
    assert found.read == {"reference": 768.0}


def test_what_no_hardware_reaches_is_refused():
    with pytest.raises(ValueError, match=r"mfu is 1\.5"):
        Utilisation(1.5, "a test")


def test_every_device_has_sources_and_prices_have_dates():
    assert known()[-1] == "this-cpu"
    assert {one.key for one in rented()} == set(known()[:-1])
    for one in rented():
        assert one.source
        assert one.price_source
        assert (one.price is None) == (one.price_date is None)
    with pytest.raises(ValueError, match="h100, h200"):
        find("abacus")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("Quadro P400", None),
    ],
)
def test_devices_are_recognised_by_the_name_that_cuda_reports(name, key):
    found = recognise(name)
    assert (None if found is None else found.key) == key


def test_the_sweep_takes_the_cheapest_that_fits():
    """Too little memory doesn't fit; at twice the price and speed it costs as much, and is faster."""
    one = job(rows=64)
    small = replace(DEVICE, key="small", memory=10**5)
    twice = replace(DEVICE, key="twice", price=7.2, flops={"float32": 2e12, "bfloat16": 8e12})
    free = replace(DEVICE, key="free", price=None)
    found = sweep(one, [small, DEVICE, twice, free], (1,), HALF)
    assert [candidate.hardware.key for candidate in found][:2] == ["twice", "test"]
    assert found[-1].cost is None
    assert {candidate.job.global_rows for candidate in found} == {64}
    assert all(candidate.memory.total <= candidate.hardware.memory for candidate in found)
    assert [c.job.precision.name for c in found if c.hardware is DEVICE] == ["bf16-mixed", "32-true"]


def test_a_plan_lists_strategies_with_the_same_step():
    plan = plan_of(job(strategy=Strategy(data=2)), DEVICE, HALF)
    assert {(o.job.strategy.name, o.job.precision.name) for o in plan.options} == {
        (strategy, precision)
        for strategy in ("ddp x2", "fsdp2 x2", "tensor x2")
        for precision in ("32-true", "bf16-mixed", "bf16-true")
    }
    assert {option.job.global_rows for option in plan.options} == {8}
    assert plan.fits
    assert plan.cost == pytest.approx(plan.duration.total / 3600 * 2 * 3.6)
    unknown = Hardware("x", "x", None, {}, None, None, "")
    assert plan_of(job(), unknown, HALF).fits is None


def test_the_mfu_of_this_machine_is_a_share():
    """And draws nothing from the global generator."""
    import torch

    before = torch.get_rng_state()
    found = measure(replace(job(rollout=ROLLOUT), recompute="block"), 1e15)
    assert 0 < found.mfu < 1
    assert found.seconds_per_parameter > 0
    assert found.decode_seconds > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert TINY.layers == 3
