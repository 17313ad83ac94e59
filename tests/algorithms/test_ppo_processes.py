"""PPO on two ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

RANKS = """
import sys
from pathlib import Path

sys.path.insert(0, {here!r})
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import Logged, PromptModule, Prompts, fit
from test_ppo_resume import everything

out, ckpt = Path(sys.argv[1]), sys.argv[2]


class Sharded(PromptModule):
    def train_dataloader(self):
        prompts = Prompts(self.lengths, 2)
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        prompts.prompts = prompts.prompts[rank::ranks]
        return self.trainer.lightning_module.rollout_loader(prompts)


save = ModelCheckpoint(out, filename="{{step}}", save_top_k=-1, every_n_train_steps=3, save_on_train_epoch_end=False)
stage, logged = everything(), Logged()
trainer = fit(stage, max_epochs=3, callbacks=[save, logged], enable_checkpointing=True, strategy="ddp", devices=2,
              data=Sharded(), ckpt_path=None if ckpt == "none" else ckpt)
torch.save([stage.state_dict(), logged.rows], out / f"rank{{trainer.global_rank}}.pt")
"""


def write(tmp_path: Path, name: str, text: str) -> str:
    script = tmp_path / name
    script.write_text(text.format(here=str(HERE)))
    return str(script)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_share_statistics_and_resume_in_mid_iteration(tmp_path: Path):
    """Both ranks log the same numbers and hold the same weights; a checkpoint has the rollout of both."""
    script = write(tmp_path, "ranks.py", RANKS)

    def run(name: str, ckpt: str):
        out = tmp_path / name
        out.mkdir()
        subprocess.run([sys.executable, script, str(out), ckpt], check=True, timeout=550)
        return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    whole = run("whole", "none")
    resumed = run("resumed", str(tmp_path / "whole/step=6.ckpt"))
    assert whole[0][1] == whole[1][1]
    for state, rows in (*whole[1:], *resumed):
        assert rows[-1] == whole[0][1][-1]
        assert all(torch.equal(state[name], whole[0][0][name]) for name in state)
