"""Rollouts by align and by vLLM: the same text? how far apart in log-probs? how long are the phases of an iteration?

    align run recipes/tiny --out runs/tiny --to reward
    python benchmarks/rollout_engines.py runs/tiny --python ENV/bin/python --out benchmarks/results/rollout_engines.json

1. Greedy responses of the SFT model to 64 test prompts, token for token, and the largest difference between the
   engine's log-prob of a sampled token and the trainer's, in float32.
2. GRPO and PPO of the tiny pipeline for some iterations with each engine, and with vLLM one iteration ahead: seconds
   per iteration of sampling (waiting for it, ahead), sending weights, scoring, reading (log-probs and values), and
   update. The first iteration, in which vLLM starts, is left out.

Whether both learn the same is what `align run recipes/tiny/engine_seeds.yaml` shows.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from measure import machine

from align.algorithms import ppo as ppo_module
from align.algorithms.ppo import PPO
from align.algorithms.response_source import ResponseSource
from align.algorithms.rollout_buffer import RolloutLoader
from align.cli import main as align_main
from align.engines import VLLM, Asked, Engine, Ours, Weights
from align.engines import vllm as vllm_module
from align.engines.probe import response_logprobs
from align.generation.sampled_ids import SampledIds
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import encode_prompt

RECIPES = Path(__file__).resolve().parents[1] / "recipes/tiny"
NEW_TOKENS = 96


def equality(model: Path, prompts: Path, engine: Engine) -> dict[str, Any]:
    """How many greedy responses are equal, and the largest gaps of sampled tokens, nats."""
    tokenizer, network = Tokenizer.load(model), load_network(model).eval()
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()[:64]]
    ids = [encode_prompt(tokenizer, text, chat=True) for text in texts]
    weights, sampled = Weights(network, "0"), SampledIds.of(tokenizer)
    greedy = Asked(ids, SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS), range(len(ids)))
    random = Asked(ids, SamplingConfig(max_new_tokens=NEW_TOKENS), range(len(ids)))
    with engine.open(tokenizer) as opened, Ours().open(tokenizer) as ours:
        theirs, own = opened.sample(weights, greedy), ours.sample(weights, greedy)
        drawn = opened.sample(weights, random)
    gaps = [
        (response_logprobs(network, prompt, response, sampled) - logprobs[: len(response)]).abs()
        for prompt, response, logprobs in zip(ids, drawn.ids, drawn.samples.logprobs.cpu(), strict=True)
    ]
    return {
        "prompts": len(ids),
        "greedy_equal": sum(a == b for a, b in zip(theirs.ids, own.ids, strict=True)),
        "tokens": sum(map(len, drawn.ids)),
        "gap_max": float(torch.cat(gaps).max()),
        "gap_mean": float(torch.cat(gaps).mean()),
    }


class Clock:
    """Seconds of parts of each iteration."""

    def __init__(self) -> None:
        """Before the first iteration."""
        self.iterations: list[dict[str, float]] = []
        self.begun = time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its seconds added to ``name`` of the current iteration."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                here = self.iterations[-1]
                here[name] = here.get(name, 0.0) + time.perf_counter() - begun

        return measured

    def beginning(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which begins an iteration."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            now = time.perf_counter()
            if self.iterations:
                self.iterations[-1]["whole"] = now - self.begun
            self.begun = now
            self.iterations.append({})
            return function(*args, **kwargs)

        return measured


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """The parts of an iteration, timed."""
    parts: list[tuple[Any, str, str]] = [
        (ResponseSource, "respond", "sampling"),
        (vllm_module._OpenVLLM, "_load", "weights"),
        (ppo_module, "score_rollout", "scoring"),
        (PPO, "_logprobs", "reading"),
        (PPO, "_values", "reading"),
    ]
    kept = [getattr(owner, name) for owner, name, _ in parts]
    begin = RolloutLoader._begin
    for (owner, name, part), function in zip(parts, kept, strict=True):
        setattr(owner, name, clock.timed(part, function))
    RolloutLoader._begin = clock.beginning(begin)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for (owner, name, _), function in zip(parts, kept, strict=True):
            setattr(owner, name, function)
        RolloutLoader._begin = begin  # type: ignore[method-assign]


def phases(run: Path, algorithm: str, python: str | None, *, ahead: int, iterations: int) -> dict[str, float]:
    """Mean seconds of each part of an iteration, without the first and the last."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config", str(RECIPES / f"{algorithm}.yaml"), "--run", str(run)]
        if python:
            engine = {"class_path": "VLLM", "init_args": {"python": python}}
            words += ["--model.init_args.rollout.engine", json.dumps(engine)]
        words += ["--trainer.default_root_dir", folder, "--trainer.max_epochs", str(iterations + 2)]
        words += ["--model.init_args.rollout.ahead", str(ahead), "--trainer.limit_val_batches", "0"]
        words += ["--trainer.enable_progress_bar", "false"]
        clock = Clock()
        with clocked(clock):
            assert align_main(words) == 0
    own = clock.iterations[1:-1]
    names = ("sampling", "weights", "scoring", "reading", "whole")
    mean = {name: sum(one.get(name, 0.0) for one in own) / len(own) for name in names}
    mean["sampling"] -= mean["weights"]  # which are sent as sampling begins
    mean["update"] = mean["whole"] - sum(mean[name] for name in ("sampling", "weights", "scoring", "reading"))
    return {name: round(seconds, 3) for name, seconds in mean.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the tiny pipeline, up to its reward model")
    parser.add_argument("--python", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "date": date.today().isoformat(), "threads": 1}
    model, prompts = options.run / "sft/model", options.run / "data/prompts_test.jsonl"
    found["equality"] = equality(model, prompts, VLLM(python=options.python))
    print(json.dumps(found["equality"]), flush=True)
    rows = []
    for algorithm in ("grpo", "ppo"):
        for name, python, ahead in (("ours", None, 0), ("vllm", options.python, 0), ("vllm, ahead", options.python, 1)):
            seconds = phases(options.run, algorithm, python, ahead=ahead, iterations=options.iterations)
            rows.append({"algorithm": algorithm, "engine": name, **seconds})
            print(json.dumps(rows[-1]), flush=True)
    found["phases_s"] = rows
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
