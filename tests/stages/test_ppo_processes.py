"""PPO in processes of its own: killed in mid-iteration, and on two ranks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

KILLED = """
import sys, time
from pathlib import Path

sys.path.insert(0, {here!r})
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from ppo_parts import fit
from test_ppo_resume import everything

out, resume, slow = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])


class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(slow)


save = ModelCheckpoint(out, save_last=True, save_top_k=0, every_n_train_steps=1, save_on_train_epoch_end=True)
stage = everything()
last = out / "last.ckpt"
fit(stage, max_epochs=3, callbacks=[save, Slow()], enable_checkpointing=True,
    ckpt_path=str(last) if resume and last.is_file() else None)
torch.save(stage.state_dict(), out / "end.pt")
"""

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
        return self.trainer.lightning_module.experience_loader(prompts)


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
def test_killed_in_mid_iteration_and_resumed_ends_in_the_same_bits(tmp_path: Path):
    """SIGKILL once the checkpoint of step 6, in the middle of the second iteration of 4 steps, is there."""
    script = write(tmp_path, "killed.py", KILLED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, str(whole), "fresh", "0"], check=True, timeout=400)
    process = subprocess.Popen([sys.executable, script, str(killed), "fresh", "1"])
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if torch.load(killed / "last.ckpt", weights_only=True)["global_step"] >= 6:
                break
        except (FileNotFoundError, EOFError, RuntimeError):
            pass
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "end.pt").exists()
    subprocess.run([sys.executable, script, str(killed), "resume", "0"], check=True, timeout=400)
    one, other = (torch.load(folder / "end.pt", weights_only=True) for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_share_statistics_and_resume_in_mid_iteration(tmp_path: Path):
    """Both ranks log the same numbers and hold the same weights; a checkpoint has the experience of both."""
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
