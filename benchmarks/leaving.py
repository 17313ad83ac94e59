"""Seconds from a SIGTERM in the middle of a rollout or a validation until all processes have exited.

    python benchmarks/leaving.py --rounds 3 --ranks 1

A tiny PPO run whose rollout samples 1,024 responses of 128 tokens, and a tiny DPO run that validates on 3,000 pairs, 4
at a time. The signal is sent a second after the rollout or the validation begins; with several ranks (DDP over gloo)
only to the last. To measure another version, put its folder in PYTHONPATH.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kill_drill  # noqa: E402
import yaml  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from measure import machine  # noqa: E402

SECOND = 1.0


class Ask(Callback):
    """Sends SIGTERM to this process once, some seconds after a hook, and records when."""

    def __init__(self, hook: str, note: str) -> None:
        """Wait for the hook of the second step or later, so that there is a state to save."""
        self.note, self.waiting = Path(note), True
        setattr(self, hook, self._begin)

    def _begin(self, trainer: Any, *_: Any) -> None:
        if self.waiting and trainer.global_step and trainer.global_rank == trainer.world_size - 1:
            self.waiting = False
            threading.Timer(SECOND, self._ask).start()

    def _ask(self) -> None:
        self.note.write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGTERM)


def make_world(world: Path) -> int:
    """Write data, an untrained model and the two recipes."""
    kill_drill.SIZES |= {"preference_val_pairs": 3000, "prompts": 1200}
    kill_drill.make_world(world)
    for stage, hook in (("ppo", "on_train_epoch_start"), ("dpo", "on_validation_start")):
        file = world / f"{stage}.yaml"
        recipe = yaml.safe_load(file.read_text())
        recipe["trainer"]["callbacks"] = [
            {"class_path": "leaving.Ask", "init_args": {"hook": hook, "note": f"{world}/{stage}.asked"}}
        ]
        if stage == "ppo":
            recipe["model"]["init_args"]["rollout"] |= {"episodes": 1024, "max_new_tokens": 128}
            recipe["model"]["init_args"]["update"] |= {"epochs": 1, "minibatches": 64}
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return 0


def measure(stage: str, world: Path, number: int, ranks: int) -> float:
    """Seconds of one run."""
    run = world / f"{stage}-{number}"
    words = kill_drill.command(stage, world, run, ranks, "ddp")
    life = kill_drill.Life(words, ranks=ranks, log=run.with_suffix(".log"))
    ended = life.wait(kill_drill.LONGEST)
    life.kill(list(range(ranks)))
    if not ended or any(life.codes.values()) or not (run / "preempted.json").is_file():
        raise RuntimeError(run.with_suffix(".log").read_text()[-3000:])
    return time.time() - float((world / f"{stage}.asked").read_text())


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--ranks", type=int, default=1)
    args = p.parse_args()
    import torch

    import align.algorithms  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch)
        if os.waitpid(kill_drill.fork(lambda: make_world(world), world / "world.log"), 0)[1]:
            raise RuntimeError((world / "world.log").read_text()[-3000:])
        for stage, place in (("ppo", "rollout"), ("dpo", "validation")):
            taken = [measure(stage, world, number, args.ranks) for number in range(args.rounds)]
            print(f"{place}: median {statistics.median(taken):.2f} s of {', '.join(f'{one:.2f}' for one in taken)}")
    print(f"{machine()}; 1 thread; {date.today()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
