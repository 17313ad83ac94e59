"""Does every stage give the same result on several processes as on one?

Runs the stages of a recipe folder for a few steps on one process and, with the same global batches, on two gloo
processes under each hardware overlay (four for fsdp2_tp), and compares the loss curve, the validation metrics and the
final weights:

    align run recipes/tiny                                       # writes the models and data that the stages start from
    python benchmarks/equality.py --run runs/tiny --out benchmarks/results/equality.json

- ``loss``: largest relative difference of train/loss at any step;
- ``metrics``: the same of every val/*, policy/* and rollout/* metric;
- ``weights``: ``|w - w1| / |w1 - w0|``, Euclidean over all trained weights: the error relative to the whole update.

``--lora`` trains adapters (``--lora dora=true``: with these settings), and ``weights`` are the merged ones:

    python benchmarks/equality.py --run runs/tiny --lora --stages sft reward dpo ppo grpo
"""

import argparse
import csv
import json
import math
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

from processes import launch

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
PROCESSES = {"single": 1, "ddp": 2, "fsdp2": 2, "tp": 2, "fsdp2_tp": 4}
DATA_RANKS = {"single": 1, "ddp": 2, "fsdp2": 2, "tp": 1, "fsdp2_tp": 2}
ROOT = Path(__file__).resolve().parents[1]


def command(stage: str, strategy: str, options: argparse.Namespace, out: Path) -> list[str]:
    """The arguments of ``align fit`` for a few small steps of a stage."""
    rows = options.rows // DATA_RANKS[strategy]
    words = [f"--config={options.recipes}/{stage}.yaml"]
    if strategy != "single":
        words += [f"--config={ROOT}/recipes/hardware/{strategy}.yaml", f"--trainer.devices={PROCESSES[strategy]}"]
    words += [
        f"--run={options.run}",
        f"--trainer.default_root_dir={out}",
        "--trainer.accelerator=cpu",
        f"--trainer.precision={options.precision}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=1.0",
        "--trainer.num_sanity_val_steps=0",
        "--checkpoint.save_top_k=0",
        f"--data.init_args.batch_size={rows}",
        f"--data.init_args.cache_dir={out.parent}/cache",
        "--model_directory.which=last",
        "--model.init_args.schedule.warmup_steps=0",
    ]
    if options.lora is not None:
        words += [f"--config={ROOT}/recipes/hardware/lora.yaml", "--model.init_args.optimizer.lr=1e-3"]
        words += [f"--model.init_args.lora.{setting}" for setting in options.lora]
    if stage in ("ppo", "grpo"):
        words += ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2"]
        words += [f"--model.init_args.rollout.episodes={options.rows}", "--model.init_args.rollout.max_new_tokens=16"]
        words += ["--model.init_args.update.epochs=2", "--model.init_args.update.minibatches=2"]
        words += [
            "--model.init_args.policy_evaluation.prompts=8",
            "--model.init_args.policy_evaluation.max_new_tokens=16",
        ]
        words += ["--model.init_args.rollout.group_size=2"] if stage == "grpo" else []
    else:
        words += [f"--trainer.max_steps={options.steps}", f"--trainer.val_check_interval={options.steps}"]
    if stage == "dpo":
        words += [
            "--model.init_args.policy_evaluation.prompts=0",
            f"--model.init_args.reference_logprobs={options.reference}",
        ]
    return words


def child(options: argparse.Namespace) -> None:
    """Run all stages under one strategy, on as many processes as were launched."""
    from align.cli import main

    for stage in options.stages:
        out = options.work / options.child / stage
        assert main(["fit", *command(stage, options.child, options, out)]) == 0


def curve(run: Path) -> dict[tuple[str, int], float]:
    """Every number in a run's metrics.csv, except times."""
    found = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.partition("/")[0] in ("train", "val", "policy", "rollout"):
                    found[name, int(row["step"])] = float(value)
    return found


def compare(stage: str, strategy: str, options: argparse.Namespace, start: dict) -> dict[str, float]:
    """The three differences between a run and the run on one process."""
    from safetensors.torch import load_file

    one, other = options.work / "single" / stage, options.work / strategy / stage
    ours, theirs = curve(one), curve(other)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{stage} under {strategy} logs other metrics: {sorted(ours.keys() ^ theirs.keys())[:6]}")
    parts: dict[str, float] = {"loss": 0.0, "metrics": 0.0}
    for key, value in ours.items():
        if key[0].startswith("train/") and key[0] != "train/loss":
            continue  # of this rank's share of the batch
        if key == ("val/accuracy", 0):
            continue  # every pair is a tie before training, but for rounding
        kind = "loss" if key[0] == "train/loss" else "metrics"
        parts[kind] = max(parts[kind], abs(theirs[key] - value) / max(abs(value), 1e-2))
    first, last = load_file(one / "model/model.safetensors"), load_file(other / "model/model.safetensors")
    assert first.keys() == last.keys()
    error = math.sqrt(sum(float((last[name] - first[name]).square().sum()) for name in first))
    moved = math.sqrt(sum(float((first[name] - start[name]).square().sum()) for name in first if name in start))
    return parts | {"weights": error / moved}


def starts(stage: str, options: argparse.Namespace) -> dict:
    """The weights that a stage starts from."""
    from safetensors.torch import load_file

    from align.io.location import read_config
    from align.model.gpt import GPT

    if stage == "pretrain":
        network = GPT(read_config(options.work / "single/pretrain/model"))
        return dict(network.state_dict())
    parent = "pretrain" if stage == "sft" else "sft"
    return load_file(options.run / parent / "model/model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of `align run recipes/tiny`")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes/tiny", help="recipe folder")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--strategies", nargs="+", default=list(PROCESSES)[1:], choices=list(PROCESSES)[1:])
    parser.add_argument("--rows", type=int, default=8, help="rows of the global batch; episodes of an iteration")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps (not PPO: two iterations)")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "64-true", "bf16-mixed"))
    parser.add_argument("--reference", default="on_the_fly", help="reference_logprobs of DPO")
    parser.add_argument("--lora", nargs="*", metavar="NAME=VALUE", help="train adapters with these settings")
    parser.add_argument("--timeout", type=float, default=1200, help="time limit of a strategy, seconds")
    parser.add_argument("--out", type=Path, help="write the table to this JSON file")
    parser.add_argument("--work", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        rows = []
        for strategy in ("single", *options.strategies):
            child_words = [__file__, *words, "--child", strategy, "--work", str(options.work)]
            launch(child_words, PROCESSES[strategy], logs=options.work / strategy, timeout=options.timeout)
        print("| stage | strategy | loss | metrics | weights |\n| --- | --- | --- | --- | --- |")
        for stage in options.stages:
            start = starts(stage, options)
            for strategy in options.strategies:
                found = compare(stage, strategy, options, start)
                rows.append({"stage": stage, "strategy": strategy, **found})
                print(f"| {stage} | {strategy} | " + " | ".join(f"{value:.1e}" for value in found.values()) + " |")
    if options.out:
        facts = {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine()}
        facts |= {"precision": options.precision, "rows": options.rows, "steps": options.steps}
        facts |= {} if options.lora is None else {"lora": options.lora}
        options.out.write_text(json.dumps(facts | {"table": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
