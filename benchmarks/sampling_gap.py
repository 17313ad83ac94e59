"""How fast a model samples in float32 and in bfloat16, and how far the sampler's log-probs are from the trainer's.

    python benchmarks/sampling_gap.py PATH --out benchmarks/results/sampling_gap.json

Samples 8 responses of at most 64 tokens to each of two prompts, as a GRPO rollout does, on one thread; then computes
their log-probs with the float32 network, as the trainer does.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch
from measure import machine

from align.algorithms.ppo_settings import RolloutConfig
from align.algorithms.rollout import RolloutPrompt, sample_rollout
from align.io.directory import load_network
from align.model.response_states import response_states, response_tokens
from align.objectives import token_logprobs, truncated_importance_weights
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import encode_prompt

GROUP, NEW_TOKENS, CAP = 8, 64, 2.0
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a strange bottle on the beach one morning. " * 4,
    "Explain to a child why the sky is blue and why sunsets are red, in simple words, with an example. " * 4,
)


@torch.no_grad()
def measure(path: Path) -> list[dict[str, object]]:
    """One row per precision: tokens per CPU second, CPU seconds, and the gap in nats."""
    tokenizer, network = Tokenizer.load(path), load_network(path).eval()
    prompts = [
        RolloutPrompt(encode_prompt(tokenizer, text, chat=True), number, text, {})
        for number, text in enumerate(PROMPTS)
    ]
    rows: list[dict[str, object]] = []
    for dtype in (None, "bfloat16"):
        config = RolloutConfig(len(prompts) * GROUP, GROUP, max_new_tokens=NEW_TOKENS, dtype=dtype)
        start = time.process_time()
        responses = sample_rollout(network, prompts, config, tokenizer=tokenizer, seed=0, iteration=0)
        sampled = time.process_time()
        states = response_states(network, *responses.rows, group_size=GROUP)
        targets = response_tokens(*responses.rows)
        logprobs = token_logprobs(states, network.output_weight, targets, temperature=1.0, softcap=network.softcap)
        read = time.process_time()
        theirs = responses.logprobs[responses.mask]
        gap = logprobs - theirs
        of = responses.mask.nonzero()[:, 0]
        rows.append(
            {
                "dtype": dtype or "float32",
                "tokens": len(gap),
                "tokens_per_cpu_s": round(len(gap) / (sampled - start), 1),
                "sampling_cpu_s": round(sampled - start, 2),
                "logprobs_cpu_s": round(read - sampled, 2),
                "gap_mean": gap.abs().mean().item(),
                "gap_max": gap.abs().max().item(),
                "response_gap_std": torch.zeros(len(responses.lengths)).index_add(0, of, gap).std().item(),
                "weight_mean": truncated_importance_weights(logprobs, theirs, cap=CAP).mean().item(),
                "truncated": (gap.exp() > CAP).float().mean().item(),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model or Hugging Face directory with a chat template")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.model)
    print(json.dumps(rows, indent=1))
    if options.out:
        found = {
            "command": "benchmarks/sampling_gap.py PATH",
            "machine": machine(),
            "date": date.today().isoformat(),
            "rows": rows,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
