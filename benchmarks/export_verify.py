"""What `align export --verify` measures: of each precision, and of networks with a wrong tensor.

python benchmarks/export_verify.py runs/tiny/dpo/model --prompts runs/tiny/data/prompts_test.jsonl

The source responds to 8 prompts with 32 tokens at temperature 1. The damaged networks are compared with the source
directly, as an export in float32 would be: two heads of a layer with swapped queries, the two norms of a layer swapped,
ten times RoPE's theta.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from align.cli.prompt_file import read_prompts
from align.export.export_settings import ExportSettings
from align.export.rounding import rounded
from align.export.source import Source, open_source
from align.export.verify import MEASURED, PLAIN_PROMPTS, Compared, divergence, logprobs, prompt_ids, responses, verify
from align.export.write_export import export, open_reading
from align.model.gpt import GPT

PRECISIONS = (
    {},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"quantize": "int8"},
    {"format": "gguf"},
    {"format": "gguf", "dtype": "float16"},
    {"format": "gguf", "dtype": "bfloat16"},
    *({"format": "gguf", "quantize": name} for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")),
)


@torch.no_grad()
def damaged(source: GPT) -> Iterator[tuple[str, GPT]]:
    """Networks with one wrong tensor or setting."""
    layers = len(source.model.layers)
    for number in sorted({0, layers // 2, layers - 1}):
        network = copy.deepcopy(source)
        heads = network.model.layers[number].self_attn.q_proj.weight.unflatten(0, (source.config.heads, -1))
        heads[:2] = heads[:2].flip(0).clone()
        yield f"heads, layer {number}", network
        network = copy.deepcopy(source)
        layer = network.model.layers[number]
        layer.input_layernorm, layer.post_attention_layernorm = layer.post_attention_layernorm, layer.input_layernorm
        yield f"norms, layer {number}", network
    network = GPT(replace(source.config, rope_theta=10 * source.config.rope_theta)).eval()
    network.load_state_dict(source.state_dict())
    yield "10 theta", network


def measure(source: Source, prompts: list) -> None:
    """Print a line for each damage and precision."""
    network = source.network
    assert isinstance(network, GPT)
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in prompts]
    sampled = responses(network, source.tokenizer, ids, MEASURED, temperature=1.0).ids
    rows = [(prompt + response, len(prompt)) for prompt, response in zip(ids, sampled, strict=True)]
    count = sum(map(len, sampled))
    ours = [logprobs(network, *row) for row in rows]
    for name, wrong in damaged(network):
        kl = sum(divergence(p, logprobs(wrong, *row)) for p, row in zip(ours, rows, strict=True)) / count
        print(f"| {name} | {kl:.1e} |", flush=True)
    context = max(map(len, ids)) + MEASURED
    for options in PRECISIONS:
        settings = ExportSettings(**options)
        with TemporaryDirectory() as folder:
            export(source, Path(folder, "out"), settings)
            start = time.process_time()
            reading = open_reading(source, Path(folder, "out"), settings, context=context)
            compared = Compared(reading, rounded(source, settings))
            found = verify(source, compared, prompts, max_new_tokens=MEASURED, judge=None)
            reading.close()
        print(
            f"| {' '.join(options.values()) or 'hf'} | {found.kl:.1e} | {found.kl_rounded:.1e} | {found.top1:.3f} | "
            f"{found.perplexity_change:+.2%} | {time.process_time() - start:.0f} CPU seconds |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder or model directory of a language model")
    parser.add_argument("--prompts", help="JSONL file of {'prompt'}; without it, those of --verify")
    args = parser.parse_args()
    measure(open_source(args.model), read_prompts(args.prompts, limit=8) if args.prompts else list(PLAIN_PROMPTS))
