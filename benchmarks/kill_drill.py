"""SIGKILL at random moments of a tiny DPO run and a tiny PPO run: does every resumed run end like an uninterrupted one?

    python benchmarks/kill_drill.py --drills 20 --out benchmarks/results/kill_drill.json
    python benchmarks/kill_drill.py --strategy fsdp2 --stages dpo --ranks 2 --drills 10
    python benchmarks/kill_drill.py --signal TERM --anywhere 0
    python benchmarks/kill_drill.py --stages ppo --ranks 1 --drills 40 --engine ENV/bin/python

The time of the signal is drawn uniformly from the rest of the run after its first checkpoint; for a share of the drills
(``--anywhere``) from the whole run, from parsing the recipe to writing the model directory. With two ranks (over gloo)
a drill signals both, the first or the second, in turn. A rank that survives gets time to exit and is then killed; after
SIGTERM that applies to every rank. The run resumed with ``--ckpt_path last`` must be bitwise identical to the
uninterrupted one: the model directory's weights, the weights and optimizer states of ``last.ckpt``, and the steps and
columns of ``metrics.csv``.

With ``--engine``, vLLM samples one iteration ahead, and a drill kills the trainer or a process of the engine, in turn.
A trainer whose engine died must end on its own, with exit code 1; and no process, and no weights in shared memory, may
be left of either.

Imports take longer than such a run, so this process imports everything and forks each run, with torchrun's environment.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from measure import machine  # noqa: E402

FSDP2 = Path(__file__).resolve().parents[1] / "recipes/hardware/fsdp2.yaml"
PATIENCE = 15.0  # seconds that a rank left alone, or asked, has to end
SOUND = {".lock", ".metadata"}  # hidden, and not half written
LONGEST = 300.0  # seconds of a life
SIZES = {"pretrain_documents": 60, "pretrain_val_documents": 2, "sft_chats": 2, "sft_val_chats": 2}
SIZES |= {"preference_pairs": 60, "preference_val_pairs": 12, "prompts": 40, "prompts_val": 8, "prompts_test": 2}
TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
NETWORK = {"layers": 2, "heads": 2, "kv_heads": 1, "width": 64, "context": 160}  # vLLM needs heads of 32


class Life:
    """An ``align`` command on one or two ranks, each in its own process."""

    def __init__(self, words: list[str], *, ranks: int, log: Path) -> None:
        """Start the processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.begun = time.monotonic()
        self.codes: dict[int, int] = {}
        self.pids = [fork(lambda rank=rank: _life(words, rank, ranks, port), log) for rank in range(ranks)]  # type: ignore[misc]

    def wait(self, seconds: float) -> bool:
        """Wait for this many seconds; returns whether all ranks ended."""
        deadline = time.monotonic() + seconds
        while True:
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        self.codes[rank] = os.waitstatus_to_exitcode(status)
            if len(self.codes) == len(self.pids) or time.monotonic() > deadline:
                return len(self.codes) == len(self.pids)
            time.sleep(0.002)

    def wait_for(self, file: Path) -> bool:
        """Wait until a file exists; returns whether it appeared before all ranks ended."""
        while not file.exists():
            if self.wait(0):
                return False
            time.sleep(0.002)
        return True

    def kill(self, ranks: list[int], number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        for rank in ranks:
            if rank not in self.codes:
                os.kill(self.pids[rank], number)


def _life(words: list[str], rank: int, ranks: int, port: int) -> int:
    from lightning.pytorch.utilities import rank_zero_only

    from align.cli import main

    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "drill"}
        os.environ.update({name: str(value) for name, value in names.items()})
        rank_zero_only.rank = rank  # type: ignore[attr-defined]
    return main(words)


def recipe(stage: str, world: Path, engine: str | None) -> dict[str, Any]:
    """A recipe with everything that has state: schedule, validation, best model, adaptive KL, running statistics."""
    data = {"tokenizer": f"{world}/tokenizer", "context": 160, "cache_dir": f"{world}/cache"}
    model: dict[str, Any] = {"init_from": f"{world}/model", "schedule": {"kind": "cosine", "warmup_steps": 3}}
    if stage == "dpo":
        trainer = {"max_epochs": 3, "val_check_interval": 4}
        data |= {"train": f"{world}/data/preferences_train.jsonl", "batch_size": 4}
        data |= {"validation": f"{world}/data/preferences_val.jsonl"}
        model |= {"policy_evaluation": {"prompts": 0}, "optimizer": {"lr": 1e-3}}
    else:
        trainer = {"max_epochs": 5, "check_val_every_n_epoch": 2}
        data |= {"train": f"{world}/data/prompts_train.jsonl", "batch_size": 4}
        data |= {"validation": f"{world}/data/prompts_val.jsonl"}
        model |= {"reward": "sandbox", "rollout": {"episodes": 8, "max_new_tokens": 16}, "optimizer": {"lr": 1e-3}}
        model |= {"update": {"epochs": 2, "minibatches": 2}, "kl": {"kl_coef": 0.1, "kl_target": 0.5}}
        model |= {
            "scoring": {"normalise": "running"},
            "value": {"warmup_iterations": 1},
            "policy_evaluation": {"prompts": 4},
        }
        if engine:
            init_args = {"python": engine, "environment": {"OMP_NUM_THREADS": "1"}}
            model["rollout"] |= {"ahead": 1, "engine": {"class_path": "VLLM", "init_args": init_args}}
    return {
        "seed_everything": 0,
        "trainer": TRAINER | trainer,
        "checkpoint": {"every_n_train_steps": 3},
        "model_directory": {"which": "best" if stage == "dpo" else "last"},
        "model": {"class_path": "align.algorithms." + stage.upper(), "init_args": model},
        "data": {
            "class_path": "align.data." + ("PreferenceData" if stage == "dpo" else "PromptData"),
            "init_args": data,
        },
    }


def fork(work: Callable[[], int], log: Path) -> int:
    """Run ``work`` in a child process and return its pid; its output goes to ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def command(stage: str, world: Path, run: Path, ranks: int, strategy: str) -> list[str]:
    """The command that starts a run or resumes it."""
    words = ["fit", "--config", str(world / f"{stage}.yaml"), "--trainer.default_root_dir", str(run)]
    overlay = {"ddp": ["--trainer.strategy=ddp"], "fsdp2": ["--config", str(FSDP2), "--trainer.accelerator=cpu"]}
    return [*words, *(overlay[strategy] if ranks > 1 else []), f"--trainer.devices={ranks}", "--ckpt_path=last"]


def make_world(world: Path, engine: str | None) -> None:
    """Write data, a tokenizer, an untrained model and the recipes."""
    import yaml

    from align.cli import main
    from align.io.atomic import replacing_directory
    from align.io.directory import save_network
    from align.model.config import GPTConfig
    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer

    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    assert main(["sandbox", "--out", str(world / "data"), *sizes]) == 0
    words = [str(world / "data/pretrain.jsonl"), "--out", str(world / "tokenizer"), "--vocab_size", "400"]
    assert main(["tokenizer", "train", *words]) == 0
    tokenizer = Tokenizer.load(world / "tokenizer")
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **NETWORK))
    network.initialise(0)
    with replacing_directory(world / "model") as directory:
        tokenizer.save(directory)
        save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    for stage in ("dpo", "ppo"):
        (world / f"{stage}.yaml").write_text(yaml.safe_dump(recipe(stage, world, engine), sort_keys=False))


def end_of(run: Path) -> dict[str, str]:
    """What must be equal: hashes of the weights, tensors of the last checkpoint, and which values were logged when."""
    import torch

    from align.io.lightning_checkpoint import read_sharded

    last = run / "checkpoints/last.ckpt"
    stored = read_sharded(last, only_weights=False) if last.is_dir() else torch.load(last, weights_only=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors({key: stored[key] for key in ("state_dict", "optimizer_states")}, "")):
        digest.update(name.encode() + tensor.numpy().tobytes())
    with (run / "metrics.csv").open(newline="") as file:
        filled = [
            {name for name, value in row.items() if value} | {f"step {row['step']}"} for row in csv.DictReader(file)
        ]
    # Times are logged every few batches of a process, not of a run.
    rows = [sorted(name for name in names if not name.startswith("throughput/")) for names in filled]
    return {
        "model": hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest(),
        "checkpoint": digest.hexdigest(),
        "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def _tensors(value: Any, name: str) -> list[tuple[str, Any]]:
    if hasattr(value, "numpy"):
        return [(name, value)]
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [entry for key, item in items for entry in _tensors(item, f"{name}.{key}")]
    return []


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


def left_of(pids: list[int]) -> list[int]:
    """Those of some processes that still run after a while, but for the dead that nobody has waited for."""
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid in pids if _runs(pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return left


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def drill(kind: "Kind", *, moment: float, anywhere: bool, victims: list[int], engine: bool = False) -> dict[str, Any]:
    """Start a run, send the signal, resume, compare.

    Args:
        kind: of run.
        moment: seconds after the first checkpoint, or after the start.
        anywhere: count from the start.
        victims: the ranks that get the signal.
        engine: a process of the engine gets it instead.

    Returns:
        dict: the findings; ``killed`` is False if the run ended before the signal.
    """
    from align.training.checkpoint_files import find_whole, global_step

    ranks = kind.ranks
    run = Path(tempfile.mkdtemp(prefix=f"{kind.name.replace(' ', '-')}-", dir=kind.world))
    words, log = kind.command(run), run.with_suffix(".log")
    life, last = Life(words, ranks=ranks, log=log), run / "checkpoints/last.ckpt"
    found: dict[str, Any] = {"run": kind.name, "moment_s": round(moment, 3), "behind": "start" if anywhere else "first"}
    found |= {"killed_ranks": victims}
    if not (anywhere or life.wait_for(last)) or life.wait(moment):
        return found | {"killed": False}
    started = [pid for trainer in life.pids for pid in descendants(trainer)] if kind.args.engine else []
    if engine:
        named = {pid: _command(pid) for pid in started}
        # Not the guard, nor helpers of multiprocessing, without which the engine continues.
        serving = [
            pid
            for pid, words in named.items()
            if "guard.py" not in words and ("api_server" in words or "VLLM" in words)
        ]
        if not serving:
            return _end(life, found)
        victim = kind.rng.choice(serving)
        found |= {"killed_ranks": [], "killed_engine": named[victim][:120]}
        os.kill(victim, signal.SIGKILL)
    else:
        life.kill(victims, kind.signal)
    signalled = time.monotonic()
    found |= {"killed": True, "alone_ended": None}
    if engine or len(victims) < ranks or kind.signal != signal.SIGKILL:
        found["alone_ended"] = life.wait(LONGEST if engine else PATIENCE)
        found["left_after_s"] = round(time.monotonic() - signalled, 3)
        life.kill(list(range(ranks)))
    life.wait(LONGEST)
    found |= {"left_codes": [life.codes[rank] for rank in range(ranks)]}
    if kind.args.engine:
        found |= {"orphans": left_of(started), "weights_left": [p.name for p in Path("/dev/shm").glob("align-*")]}
    newest = find_whole(last.parent, lambda line: None)
    found |= {"from": newest and newest.name, "from_step": (newest and global_step(newest)) or 0}
    found |= {"left_half_written": sorted(path.name for path in run.rglob(".*") if path.name not in SOUND)}
    again = Life(words, ranks=ranks, log=log)
    ended = again.wait(LONGEST)
    again.kill(list(range(ranks)))
    again.wait(LONGEST)
    found |= {"codes": [again.codes[rank] for rank in range(ranks)] if ended else "too slow"}
    try:
        end = end_of(run)
    except Exception as error:
        end = {"error": f"{type(error).__name__}: {error}"}
    found |= {"same": {name: end.get(name) == value for name, value in kind.whole.items()}}
    if all(found["same"].values()):
        shutil.rmtree(run)
        log.unlink()
    else:
        found["log"] = log.read_text()[-3000:]
    return found


def _end(life: Life, found: dict[str, Any]) -> dict[str, Any]:
    life.kill(list(range(len(life.pids))))
    life.wait(LONGEST)
    return found | {"killed": False}


class Kind:
    """Drills of one stage on one number of ranks, compared with one uninterrupted run."""

    def __init__(self, stage: str, ranks: int, world: Path, args: argparse.Namespace) -> None:
        """Run without interruption."""
        self.stage, self.ranks, self.world, self.args = stage, ranks, world, args
        self.name = f"{stage} {ranks}" + (f" {args.strategy}" if ranks > 1 else "")
        self.signal = getattr(signal, f"SIG{args.signal}")
        self.rng, self.done = random.Random(f"{args.seed} {self.name}"), 0
        run = world / f"{self.name.replace(' ', '-')}-whole"
        shutil.rmtree(run, ignore_errors=True)
        life = Life(self.command(run), ranks=ranks, log=run.with_suffix(".log"))
        life.wait_for(run / "checkpoints/last.ckpt")
        self.first = time.monotonic() - life.begun
        if not life.wait(LONGEST) or any(life.codes.values()):
            raise RuntimeError(run.with_suffix(".log").read_text()[-3000:])
        self.seconds = time.monotonic() - life.begun
        self.whole = end_of(run)

    def command(self, run: Path) -> list[str]:
        """The command of this kind of run."""
        return command(self.stage, self.world, run, self.ranks, self.args.strategy)

    def next(self) -> dict[str, Any]:
        """Run one drill; a time after the run's end is drawn again."""
        victims = [0] if self.ranks == 1 else [[0, 1], [0], [1]][self.done % 3]
        # Evenly spaced: of four drills with a share of 0.25, the fourth.
        share = self.args.anywhere
        anywhere = int((self.done + 1) * share) > int(self.done * share)
        engine = bool(self.args.engine) and self.done % 2 == 1
        while True:
            moment = self.rng.uniform(0, self.seconds if anywhere else self.seconds - self.first)
            found = drill(self, moment=moment, anywhere=anywhere, victims=victims, engine=engine)
            if found["killed"]:
                self.done += 1
                return found | {"whole_s": round(self.seconds, 3), "first_s": round(self.first, 3)}


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table with one row per kind of run."""
    columns = ["run", "drills", "of them gone on from a checkpoint", "same weights", "same optimizer"]
    columns += ["same rows in metrics.csv", "half-written files left"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run in dict.fromkeys(found["run"] for found in results):
        own = [found for found in results if found["run"] == run]
        counts = [len(own), sum(bool(found["from_step"]) for found in own)]
        counts += [sum(found["same"][name] for found in own) for name in ("model", "checkpoint", "rows")]
        counts += [sum(bool(found["left_half_written"]) for found in own)]
        lines.append(f"| {run} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def write(args: argparse.Namespace, results: list[dict[str, Any]], seconds: float) -> None:
    """Write the results so far, with machine and versions."""
    facts = {"command": " ".join(sys.argv), "machine": machine(), "date": str(date.today()), "seed": args.seed}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts | {"seconds": round(seconds), "drills": results}, indent=1) + "\n")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--drills", type=int, default=20, help="drills of each stage and number of ranks")
    p.add_argument("--stages", nargs="+", default=["dpo", "ppo"])
    p.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp", help="strategy of runs on several ranks")
    p.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    p.add_argument("--anywhere", type=float, default=0.25, help="share of signals drawn over the whole run")
    p.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    p.add_argument("--seed", type=int, default=0, help="seed of the times")
    p.add_argument("--engine", metavar="PYTHON", help="Python of an environment with vLLM, which then samples")
    p.add_argument("--out", type=Path, help="write every drill to this JSON file")
    p.add_argument("--keep", type=Path, help="work in this folder and keep it")
    args = p.parse_args()
    import torch

    import align.algorithms  # noqa: F401

    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        world = args.keep or Path(scratch)
        world.mkdir(parents=True, exist_ok=True)
        making = fork(lambda: make_world(world, args.engine) or 0, world / "world.log")  # type: ignore[func-returns-value]
        if os.waitpid(making, 0)[1]:
            raise RuntimeError((world / "world.log").read_text()[-3000:])
        kinds = [Kind(stage, ranks, world, args) for stage in args.stages for ranks in args.ranks]
        results: list[dict[str, Any]] = []
        for _ in range(args.drills):
            for kind in kinds:
                results.append(kind.next())
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
                if args.out:
                    write(args, results, time.monotonic() - begun)
    print(table(results))
    alone = [found["alone_ended"] for found in results if found["alone_ended"] is not None]
    print(f"\nDrills whose ranks exited without being killed within {PATIENCE:.0f} s: {sum(alone)} of {len(alone)}")
    left = sorted(found["left_after_s"] for found in results if found["alone_ended"])
    if left:
        print(f"Seconds until the last one had: median {left[len(left) // 2]:.2f}, longest {left[-1]:.2f}")
    if args.engine:
        own = [found for found in results if "killed_engine" in found]
        told = sum(found["left_codes"] == [1] for found in own)
        print(f"Engine killed {len(own)} times; the trainer ended on its own with exit code 1 in {told} of them")
        kept = sum(bool(found["orphans"] or found["weights_left"]) for found in results)
        print(f"Drills that left a process or weights in shared memory: {kept} of {len(results)}")
    print(f"{machine()}; 1 thread a process; {(time.monotonic() - begun) / 60:.1f} minutes; {date.today()}")
    return 0 if all(all(found["same"].values()) for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
