"""Accumulating in float64 on a device that has none: what is added there comes out as on the CPU."""

import subprocess
import sys

import pytest
import torch
from another_device import AWAY, environment, register

from align.algorithms.language_modeling import TokenLoss
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.reference_stage import Means
from align.algorithms.reward_modeling import PairScores
from align.algorithms.scoring import RewardStatistics
from align.objectives import explained_variance
from align.training.float64 import wide


def test_on_a_device_without_float64():
    code = "import test_float64; test_float64.accumulate_away()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(__file__), timeout=100
    )
    assert done.returncode == 0, done.stderr[-4000:]


def accumulate_away():
    """What the process with the other device does."""
    library = register()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, device=AWAY).double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64).to(AWAY)
    assert wide(torch.ones(2, device=AWAY)).device.type == "cpu"
    assert wide(torch.ones(2, device=AWAY)).dtype == torch.float64
    here, there = accumulated("cpu"), accumulated(AWAY)
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert float(value) == float(there[name]), name
    del library


def accumulated(device):
    """Everything that the stages accumulate, of numbers whose float32 sums lose what is looked for."""
    ones = torch.ones(2, dtype=torch.int64, device=device)
    metrics = torch.nn.ModuleList(
        [TokenLoss(), PairScores(), Means(("first", "second")), PolicyEvaluation(PolicyEvaluationConfig())]
    ).to(device)
    tokens, scores, means, evaluation = metrics
    assert evaluation.kl.device.type == "cpu" or device != AWAY
    for nll in (2.0**24, 1.0, 1.0):
        tokens.update(torch.tensor(nll, device=device), ones.sum(), ones)
    chosen, rejected = torch.tensor([[4000.5, 2.0, 1.0], [4000.25, 2.0, 3.0]]).to(device)
    for gold in (None, torch.tensor([0.5, 0.0, -0.1], dtype=torch.float64)):
        scores.update(chosen, rejected, chosen - rejected, gold)
    means.update(torch.arange(4.0).view(2, 2).to(device), ones.bool().expand(2, -1))
    statistics = RewardStatistics()
    for rewards in (chosen, rejected):
        statistics.update(rewards, lambda tensor: tensor)
    values, returns = wide(chosen[None]), wide(rejected[None])
    explained = explained_variance(values, returns, torch.tensor([[True, True, False]]).to(values.device))
    metrics = {f"{name} {kind}": value for kind, found in (
        ("tokens", tokens.compute()), ("scores", scores.compute()), ("means", means.compute()),
        ("statistics", statistics.state_dict()),
    ) for name, value in found.items()}  # fmt: skip
    return metrics | {"explained": explained}


def test_sums_are_of_float64():
    """2^24 + 1 + 1 nats are lost in float32, which holds no odd numbers above 2^24: 2^24 then, not 2^24 + 2."""
    metric = TokenLoss()
    for nll in (2.0**24, 1.0, 1.0):
        metric.update(torch.tensor(nll), torch.tensor(1), torch.tensor([1]))
    assert metric.nll.item() == 2**24 + 2
