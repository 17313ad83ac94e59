"""One GPU: pretraining MFU, DPO and PPO samples/s with their phases, sampling tokens/s, peak memory. Under 9 minutes.

python benchmarks/gpu.py --out benchmarks/results/gpu.json

Sections that don't fit in the time budget are skipped or stopped, and their rows say so. The file is updated after each
section; the table comes last. --toy runs the same code on any device, at a size whose figures mean nothing.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_budget
import gpu_parts as parts
import lightning.pytorch as pl
import torch

from align.algorithms import ppo as ppo_module
from align.algorithms.dpo import DPO
from align.algorithms.memory_estimate import out_of_memory
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import RolloutConfig, ScoringConfig, UpdateConfig
from align.algorithms.pretrain import Pretrain
from align.algorithms.response_source import ResponseSource
from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.io.atomic import replacing_file
from align.io.directory import load_network
from align.model.gpt import GPT, ScalarGPT
from align.model.layers import Recompute
from align.training import memory as training
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig

Row = dict[str, Any]
_SCRATCH = tempfile.TemporaryDirectory()
_LEARNING: dict[str, Any] = {"optimizer": OptimizerConfig(lr=1e-6), "schedule": ScheduleConfig(kind="constant")}


def trainer(callback: pl.Callback, **settings: Any) -> pl.Trainer:
    """The Trainer as `align fit` builds it, without anything that writes files."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        accelerator="auto", devices=1, precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        gradient_clip_val=1.0, use_distributed_sampler=False, log_every_n_steps=1000, limit_val_batches=0,
        callbacks=[callback], **silent, **settings,
    )  # fmt: skip


def pretrain(size: str, rows: int, recompute: Recompute, *, toy: bool) -> Row:
    """Tokens/s and MFU of Pretrain: compiled if that works; out of memory, it halves the rows and tries again."""
    compile, found = True, Row()
    while True:
        try:
            return trained(size, rows, recompute, compile=compile, toy=toy) | found
        except Exception as error:
            if gpu_budget.out_of_time(error):
                raise
            if out_of_memory(error):
                if rows == 1:
                    raise
                rows //= 2
            elif compile:
                compile, found = False, {"compile": f"failed: {reason(error)}; run without"}
            else:
                raise
        # Not in the except block: the error keeps the network alive.
        empty()


def trained(size: str, rows: int, recompute: Recompute, *, compile: bool, toy: bool) -> Row:
    """A few steps of Pretrain under the Trainer, with random weights and full rows of random tokens."""
    config = parts.shape(size, toy=toy)
    warmup, timed = (1, 2) if toy else (3, 12)
    stage = Pretrain(
        network=parts.fresh(GPT, config),
        compile=compile,
        memory=MemoryConfig(activation_checkpointing=recompute),
        **_LEARNING,
    )
    steps, data = parts.Steps(warmup, timed), parts.Given(parts.token_batches(config, rows, 2), warmup + timed)
    trainer(steps, max_steps=warmup + timed, max_epochs=1).fit(stage, data)
    rate = timed * rows * config.context / steps.seconds
    flops, peak = stage.network.flops_per_token(config.context), parts.peak_flops(device())
    return {
        "parameters": sum(p.numel() for p in stage.network.parameters()),
        "batch": f"{rows} x {config.context}",
        "tokens_per_s": rate,
        "tflops_per_s": rate * flops / 1e12,
        "mfu": None if peak is None else rate * flops / peak,
    }


def dpo(compile: bool, *, toy: bool) -> Row:
    """Pairs/s of DPO with the reference computed in every step, and the reference's share of the time."""
    config = parts.shape("124 M", toy=toy)
    # Every batch has its own shape, and the first step of a shape is slower: warm up all of them.
    pairs, warmup, timed, more = (2, 2, 2, 1) if toy else (16, 8, 16, 4)
    memory = MemoryConfig(frozen_dtype="bfloat16" if torch.cuda.is_available() else "float32")
    stage = DPO(
        network=parts.fresh(GPT, config), reference_logprobs="on_the_fly",
        policy_evaluation=PolicyEvaluationConfig(prompts=0), compile=compile, memory=memory, **_LEARNING,
    )  # fmt: skip
    phases = parts.Phases()
    stage._reference_logprobs = phases.timed("reference", stage._reference_logprobs)
    steps, count = parts.Steps(warmup, timed, phases), warmup + timed + more
    data = parts.Given(parts.pair_batches(config, pairs, warmup), count)
    trainer(steps, max_steps=count, max_epochs=1).fit(stage, data)
    reference = phases.seconds["reference"] / more
    update = steps.phase_seconds / more - reference
    return {
        "batch": f"{pairs} pairs",
        "samples_per_s": timed * pairs / steps.seconds,
        "phases_s": {"reference": reference, "update": update},
    }


def ppo(compile: bool, *, toy: bool) -> Row:
    """Responses/s of PPO with reward and value models of the policy's size; sampling, scoring, log-probs, update."""
    config = parts.shape("124 M", toy=toy)
    episodes, new, length = (4, 4, 5) if toy else (128, 128, 64)
    phases = parts.Phases()
    steps = parts.Iterations(1, 2, phases)
    data = parts.Prompts(config, length=length, batch_size=episodes)
    stage = PPO(
        network=parts.fresh(GPT, config),
        reward=parts.save_model(ScalarGPT, config, Path(_SCRATCH.name, "reward"), data.tokenizer),
        rollout=RolloutConfig(episodes, max_new_tokens=new),
        scoring=ScoringConfig(missing_eos_penalty=0.0),
        update=UpdateConfig(epochs=2, minibatches=2, target_kl=None),
        policy_evaluation=PolicyEvaluationConfig(prompts=0),
        compile=compile,
        **_LEARNING,
    )
    with measuring(phases):
        trainer(steps, max_epochs=4).fit(stage, data)
    seconds = dict(phases.seconds)
    seconds["update"] = steps.phase_seconds - seconds.pop("iteration")
    return {
        "batch": f"{episodes} responses of {new}",
        "samples_per_s": 2 * episodes / steps.seconds,
        "phases_s": {name: seconds[name] for name in ("rollout", "scoring", "reading", "update")},
    }


@contextmanager
def measuring(phases: parts.Phases) -> Iterator[None]:
    """The parts of PPO's iteration, timed."""
    parts_of = [
        (ResponseSource, "respond", "rollout"),
        (ppo_module, "score_rollout", "scoring"),
        (PPO, "_logprobs", "reading"),
        (PPO, "_values", "reading"),
        (PPO, "roll_out", "iteration"),
    ]
    kept = [getattr(owner, name) for owner, name, _ in parts_of]
    for (owner, name, phase), function in zip(parts_of, kept, strict=True):
        setattr(owner, name, phases.timed(phase, function))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(parts_of, kept, strict=True):
            setattr(owner, name, function)


def sample(peer: str, batch: int, *, toy: bool) -> Row:
    """New tokens/s of the 124 M shape in bfloat16 from prompts of 128 tokens, 128 new ones each, temperature 1.

    Every call of "align, static" captures its graph again, as ``generate`` does; tokens/s include that time.
    """
    config = parts.shape("124 M", toy=toy)
    length, new = (8, 6) if toy else (128, 128)
    ids = torch.randint(300, (batch, length), generator=torch.Generator().manual_seed(0))
    path = parts.save_model(GPT, config, Path(_SCRATCH.name, "policy"))
    # The saved network had four bytes per weight and would determine the peak.
    parts.forget_peak()
    run = (_transformers if peer == "transformers" else _ours)(path, ids.to(parts.where()), new, peer)
    times = 1 if toy else 3
    first = _seconds(run, 1)
    seconds = _seconds(run, times)
    return {"batch": f"{batch} x {new}", "tokens_per_s": times * batch * new / seconds, "first_s": first}


def _seconds(run: Callable[[], Any], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        run()
    parts.synchronise()
    return time.perf_counter() - begun


def _ours(path: str, ids: torch.Tensor, new: int, peer: str) -> Callable[[], Any]:
    network = load_network(path, dtype=torch.bfloat16 if ids.is_cuda else torch.float32).to(ids.device)
    prompts, sampling = ids.tolist(), SamplingConfig(max_new_tokens=new)
    return lambda: generate(network, prompts, sampling, static=peer == "align, static")


def _transformers(path: str, ids: torch.Tensor, new: int, peer: str) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if ids.is_cuda else torch.float32)
    model = model.to(ids.device).eval()
    # Nothing ends a response early, as in align.
    model.generation_config.eos_token_id = None
    ones = torch.ones_like(ids)
    # From the whole vocabulary, like align; the default is the 50 most likely tokens.
    whole = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return lambda: model.generate(ids, attention_mask=ones, max_new_tokens=new, pad_token_id=256, **whole)


def sections(toy: bool) -> list[tuple[str, float, Callable[[], Row]]]:
    """What is measured, most important first: name, time limit on an H100 in seconds, and function."""
    found: list[tuple[str, float, Callable[[], Row]]] = []
    for size, rows, seconds in (("350 M", 16, 60), ("1.3 B", 8, 80), ("124 M", 32, 50)):
        found.append((f"pretrain {size}", seconds, partial(pretrain, size, 2 if toy else rows, "none", toy=toy)))
    found.append(("DPO 124 M, shared prompts", 30, partial(dpo, False, toy=toy)))
    found.append(("PPO 124 M", 50, partial(ppo, False, toy=toy)))
    for batch in (1, 4) if toy else (1, 64, 512):
        for peer in ("align", "align, static", "transformers"):
            found.append((f"generate, {peer}, batch {batch}", 20, partial(sample, peer, batch, toy=toy)))
    for what in ("selective", "block"):
        found.append((f"pretrain 350 M, {what}", 60, partial(pretrain, "350 M", 2 if toy else 16, what, toy=toy)))
    found.append(("DPO 124 M, compiled", 50, partial(dpo, True, toy=toy)))
    found.append(("PPO 124 M, compiled", 70, partial(ppo, True, toy=toy)))
    return found


def measured(name: str, run: Callable[[], Row], budget: float) -> Row:
    """A section's row; a failure or a timeout gives a row too, and the other sections still run."""
    begun = time.perf_counter()
    try:
        with gpu_budget.until(budget):
            empty()
            row = run()
        if torch.cuda.is_available():
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    except Exception as error:
        row = {"not_measured": reason(error)}
    return {"section": name, **row, "wall_s": time.perf_counter() - begun}


def reason(error: Exception) -> str:
    """The reason for a failure, in one line."""
    if gpu_budget.out_of_time(error):
        return "no time left"
    if out_of_memory(error):
        return "out of memory"
    first, *more = f"{type(error).__name__}: {error}".splitlines()
    # The compiler first names the error that it passes on.
    line = f"{first} {more[0]}" if first.endswith(":") and more else first
    return line[:120]


def empty() -> None:
    """Free the memory of earlier sections."""
    gc.collect()
    torch._dynamo.reset()
    # Compiled code keeps more alive.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    parts.forget_peak()


def device() -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| what | batch | tokens/s | samples/s | TFLOP/s | MFU | peak GB | phases, s |", "|" + "---|" * 8]
    for row in rows:
        if "not_measured" in row:
            lines.append(f"| {row['section']} | not measured: {row['not_measured']} | | | | | | |")
            continue
        cells = [f"{row[key]:.4g}" if row.get(key) else "" for key in ("tokens_per_s", "samples_per_s", "tflops_per_s")]
        cells += [f"{row[key]:.2f}" if row.get(key) else "" for key in ("mfu", "peak_gb")]
        phases = ", ".join(f"{name} {seconds:.3g}" for name, seconds in row.get("phases_s", {}).items())
        what = f"{row['section']}, compile {row['compile'].replace('|', '/')}" if "compile" in row else row["section"]
        lines.append(" | ".join([f"| {what}", row["batch"], *cells, f"{phases} |"]))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--budget",
        type=float,
        default=500.0,
        help="seconds, imports included; a section that may take longer than is left is left out, one that does is "
        "broken off",
    )
    p.add_argument("--only", default="", help="sections whose names contain this")
    p.add_argument("--toy", action="store_true", help="a toy size, on any device; its figures mean nothing")
    p.add_argument("--out", type=Path, help="write the rows to this JSON file, after every section")
    args = p.parse_args()
    if not torch.cuda.is_available() and not args.toy:
        sys.exit("there is no GPU here: nothing is measured (--toy runs the same code at a toy size)")
    if args.toy and not torch.cuda.is_available():
        training.BACKEND = "eager"
    torch.set_float32_matmul_precision("high")
    versions = {name: _version(name) for name in ("torch", "lightning", "transformers")}
    facts = {"device": device(), "date": str(date.today()), "toy": args.toy, "cuda": torch.version.cuda} | versions
    rows: list[Row] = []
    for name, seconds, run in sections(args.toy):
        if args.only not in name:
            continue
        fits = args.toy or args.budget - gpu_budget.spent() > seconds
        rows.append(measured(name, run, args.budget) if fits else {"section": name, "not_measured": "no time left"})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        facts["wall_s"] = gpu_budget.spent()
        if args.out:
            write(args.out, facts | {"rows": rows})
    print(table(rows))
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))


def write(path: Path, found: Row) -> None:
    """Write the rows so far atomically: a kill loses only the current section."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as file:
        file.write(json.dumps(found, indent=1) + "\n")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
