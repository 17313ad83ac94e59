"""Ranks that work independently exit together, whichever receives the signal."""

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from align.training import preemption


def rank(number: int, asked: list[int], busy: list[int], store: str, told) -> None:
    """Ranks in ``busy`` work until they hear of it, the others finish first; then all work again without a signal."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)

    def reduce(tensor, reduce_op):
        dist.all_reduce(tensor)
        return tensor

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    trainer: object = SimpleNamespace(world_size=2, strategy=strategy, is_global_zero=number == 0)
    preemption._Request.signal = 15 if number in asked else None
    left = False
    try:
        with preemption.preemptible(trainer) as check:  # type: ignore[arg-type]
            while number in busy:
                check()
                time.sleep(0.01)
    except preemption.Preempted:
        left = True
    preemption.forget()
    preemption._Request.polled = 0.0
    left_again = False
    try:
        with preemption.preemptible(trainer) as check:  # type: ignore[arg-type]
            check()
    except preemption.Preempted:
        left_again = True
    told.put((number, left, left_again))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("asked", "busy", "left"),
    [([0, 1], [0, 1], True), ([1], [0, 1], True), ([1], [1], True), ([0], [], True), ([], [], False)],
    ids=["both", "one of two", "the other is done", "at the end", "nobody"],
)
def test_all_ranks_leave_or_none(tmp_path: Path, asked, busy, left):
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    ranks = [context.Process(target=rank, args=(n, asked, busy, str(tmp_path / "store"), told)) for n in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert sorted([told.get(), told.get()]) == [(0, left, False), (1, left, False)]


def test_a_single_process_needs_no_group():
    """With ``alone=False`` it stops only at the end."""
    trainer: object = SimpleNamespace(world_size=1)
    reached = []

    def work(alone: bool) -> None:
        with preemption.preemptible(trainer, alone=alone) as check:  # type: ignore[arg-type]
            check()
            reached.append(alone)

    work(True)
    preemption._Request.signal = 15
    try:
        for alone in (True, False):
            with pytest.raises(preemption.Preempted):
                work(alone)
    finally:
        preemption.forget()
    assert reached == [True, False]


def accumulating(now: bool) -> SimpleNamespace:
    return SimpleNamespace(epoch_loop=SimpleNamespace(_should_accumulate=lambda: now))


@pytest.mark.parametrize(
    ("changed", "leaves"),
    [
        ({}, True),
        ({"global_step": 9}, False),  # the last by max_steps: nobody could go on from there
        ({"should_stop": True}, False),  # told to stop: who went on would train
        ({"validating": False}, False),  # the sanity check, or no validation
        ({"fast_dev_run": 1}, False),
        ({"state": SimpleNamespace(fn="validate")}, False),
        ({"fit_loop": accumulating(True)}, False),  # gradients are in no checkpoint
    ],
)
def test_which_validations_are_broken_off(monkeypatch: pytest.MonkeyPatch, changed, leaves):
    settings = {"validating": True, "state": SimpleNamespace(fn="fit"), "fast_dev_run": 0, "global_step": 3}
    settings |= {"max_steps": 9, "should_stop": False, "world_size": 1, "fit_loop": accumulating(False)}
    trainer: object = SimpleNamespace(**settings | changed)
    preemption.leave_validation(trainer)  # type: ignore[arg-type]
    monkeypatch.setattr(preemption._Request, "signal", 15)
    if leaves:
        with pytest.raises(preemption.Preempted):
            preemption.leave_validation(trainer)  # type: ignore[arg-type]
    else:
        preemption.leave_validation(trainer)  # type: ignore[arg-type]
