"""Two gloo processes give the weights, and the validation metrics, of one process on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

LANGUAGE_MODEL = """
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

sys.path.insert(0, {here!r})
from test_language_model import Batches, fit, join, make_batch, pretrain

ranks, out = int(sys.argv[1]), sys.argv[2]
# Rank 0 counts 5 tokens a row, rank 1 two: a mean of means would weigh the second rank's tokens too much.
pairs = [(make_batch(2, 5, 2 * i), make_batch(3, 2, 2 * i + 1)) for i in range(4)]


class Sharded(Batches):
    def __init__(self):
        super().__init__([], [])

    def setup(self, stage):
        rank = self.trainer.global_rank
        self.train = [pair[rank] if ranks == 2 else join(*pair) for pair in pairs]
        self.val = [pairs[0][rank]] if ranks == 2 else list(pairs[0])


pl.seed_everything(0)
stage = pretrain()
trainer = fit(stage, Sharded(), accumulate_grad_batches=2, gradient_clip_val=0.5, limit_val_batches=1.0,
              strategy="ddp" if ranks == 2 else "auto", devices=ranks, use_distributed_sampler=False)
if trainer.is_global_zero:
    metrics = {{name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}}
    torch.save([stage.network.state_dict(), metrics], out)
"""

REWARD = """
import sys

import lightning.pytorch as pl
import torch

sys.path.insert(0, {here!r})
from test_language_model import fit
from test_reward import Pairs, join, make_batch, reward

ranks, out = int(sys.argv[1]), sys.argv[2]
# Rank 0 has three pairs, rank 1 one beside padding: a mean of means would weigh the latter too much.
both = [(make_batch([(8, 5), (3, 7), (4, 2)], 2 * i), make_batch([(6, 4)], 2 * i + 1, first=3)) for i in range(4)]
padded = [make_batch([(6, 4), (0, 0), (0, 0)], 2 * i + 1, first=3) for i in range(4)]


class Sharded(Pairs):
    def __init__(self):
        super().__init__([])

    def setup(self, stage):
        rank = self.trainer.global_rank
        for i, (first, second) in enumerate(both):
            padded[i].ids[[0, 3], : second.ids.shape[1]] = second.ids
            self.train.append((first, padded[i])[rank] if ranks == 2 else join(first, second))
        self.val = [(both[0][0], padded[0])[rank]] if ranks == 2 else list(both[0])


pl.seed_everything(0)
stage = reward(normalise_on=0)
trainer = fit(stage, Sharded(), accumulate_grad_batches=2, gradient_clip_val=0.5, limit_val_batches=1.0,
              strategy="ddp" if ranks == 2 else "auto", devices=ranks, use_distributed_sampler=False)
if trainer.is_global_zero:
    metrics = {{name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}}
    torch.save([stage.network.state_dict(), metrics], out)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "tolerance"),
    [(LANGUAGE_MODEL, {"rtol": 1e-5, "atol": 1e-6}), (REWARD, {"rtol": 1e-4, "atol": 1e-5})],
    ids=["language model", "reward"],
)
def test_two_ranks_equal_one(tmp_path: Path, program: str, tolerance: dict[str, float]):
    script = tmp_path / "script.py"
    script.write_text(program.format(here=str(Path(__file__).parent)))
    results = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.pt"
        subprocess.run([sys.executable, str(script), str(ranks), str(out)], check=True, timeout=250, cwd=tmp_path)
        results.append(torch.load(out, weights_only=True))
    for one, two in zip(*results, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, **tolerance, msg=name)
