"""What `align plan` predicts against what `align fit` measures, stage by stage: peak memory and seconds.

Both read the same recipe with the same overrides, each in a process of its own; the run compares by its plan.json.

align run tiny                                   # the data and models that the stages of the tiny recipe read
python benchmarks/plan_accuracy.py --shapes tiny --threads 1
python benchmarks/plan_accuracy.py --shapes tiny,12M,100M,smollm --smollm-run runs/smollm2-135m --threads 1 \
    --out benchmarks/results/plan_accuracy.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine

ROOT = Path(__file__).resolve().parents[1]

ROLLOUTS = ("ppo", "grpo")

PRETRAINING = {
    "12M": {"vocab_size": 4096, "layers": 6, "heads": 6, "width": 384, "ff_width": 1024, "context": 256, "rows": 8},
    "100M": {"vocab_size": 16384, "layers": 12, "heads": 12, "width": 768, "ff_width": 2048, "context": 512, "rows": 4},
}
"""Shapes of networks that are pretrained on the tiny recipe's text, and rows of a batch"""


class Case(NamedTuple):
    """A stage that is planned and run.

    Attributes:
        name: shape and stage.
        words: of the command line, after the verb.
    """

    name: str
    words: list[str]


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The stages of the chosen shapes."""
    for shape in args.shapes.split(","):
        if shape == "tiny":
            for stage in ("pretrain", "sft", "reward", "dpo", "kto", "ppo", "grpo"):
                yield _case(args, shape, "tiny", stage, args.run)
        elif shape == "smollm":
            for stage in ("sft", "reward", "dpo", "ppo", "grpo"):
                yield _case(args, shape, "smollm2-135m", stage, args.smollm_run)
        else:
            settings = dict(PRETRAINING[shape])
            rows = settings.pop("rows")
            words = [f"--model.init_args.gpt.{name}={value}" for name, value in settings.items()]
            words += [f"--data.init_args.batch_size={rows}", f"--data.init_args.context={settings['context']}"]
            words += ["--data.init_args.packing=wrap"]
            yield _case(args, shape, "tiny", "pretrain", args.run, words)


def _case(
    args: argparse.Namespace, shape: str, folder: str, stage: str, run: Path, more: list[str] | None = None
) -> Case:
    steps = ["--trainer.max_epochs=1"] if stage in ROLLOUTS else [f"--trainer.max_steps={args.steps}"]
    # Nothing but training, so that time and memory are its own.
    quiet = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"]
    recipe = ["--config", str(ROOT / f"recipes/{folder}/{stage}.yaml"), "--run", str(run)]
    return Case(f"{shape} {stage}", [*recipe, *steps, *quiet, *(more or [])])


def measure(case: Case, threads: int) -> dict[str, Any]:
    """Plan a stage and run it.

    Raises:
        subprocess.CalledProcessError: one of the commands failed; its output is printed.
    """
    with tempfile.TemporaryDirectory() as out:
        words = [*case.words, f"--trainer.default_root_dir={out}"]
        # Both in the order in which a user would; the plan knows nothing of the run.
        plan = json.loads(_align(["plan", *words, "--json"], threads))
        _align(["fit", *words], threads)
        record = json.loads(Path(out, "plan.json").read_text())
    measured = record["measured"]
    memory, seconds = measured["memory"]["peak"], measured["seconds"]["total"]
    tokens = plan["tokens"]["trained"]
    return {
        "name": case.name,
        "planned_mb": plan["memory"]["peak"] / 2**20,
        "predicted_mb": record["predicted"]["memory"]["peak"] / 2**20,
        "measured_mb": memory / 2**20,
        "memory_ratio": plan["memory"]["peak"] / memory,
        "planned_s": plan["seconds"]["total"],
        "measured_s": seconds,
        "time_ratio": plan["seconds"]["total"] / seconds,
        "token_ratio": tokens / measured["tokens"]["trained"],
        "mfu": plan["utilisation"]["mfu"],
        "plan": plan,
        "record": record,
    }


def _align(words: list[str], threads: int) -> str:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    env = os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "align", *words], env=env, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def main() -> None:
    """Measure the chosen stages and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="tiny,12M,100M", help="comma list of tiny, 12M, 100M and smollm")
    parser.add_argument("--stages", help="comma list; default: all")
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="run folder of the tiny recipe")
    parser.add_argument("--smollm-run", type=Path, default=Path("runs/smollm2-135m"), help="that of smollm2-135m")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; PPO and GRPO do one iteration")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write every number to this JSON file")
    args = parser.parse_args()
    wanted = args.stages.split(",") if args.stages else None
    rows = []
    print("| stage | memory: plan, MB | measured | ratio | time: plan, s | measured | ratio | tokens, ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(args):
        if wanted is not None and case.name.split()[1] not in wanted:
            continue
        row = measure(case, args.threads)
        rows.append(row)
        memory = f"{row['planned_mb']:.0f} | {row['measured_mb']:.0f} | {row['memory_ratio']:.2f}"
        seconds = f"{row['planned_s']:.2f} | {row['measured_s']:.2f} | {row['time_ratio']:.2f}"
        print(f"| {case.name} | {memory} | {seconds} | {row['token_ratio']:.2f} |", flush=True)
    print(f"\n{machine()}; {args.threads} thread(s); {date.today()}")
    if args.out:
        facts = {"command": " ".join(sys.argv), "machine": machine(), "date": str(date.today())}
        args.out.write_text(json.dumps(facts | {"threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
