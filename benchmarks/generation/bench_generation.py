"""Batched sampling with a KV cache: `align.generation.generate.generate` and transformers' `generate`.

    python benchmarks/generation/bench_generation.py --rounds 5
    python benchmarks/generation/bench_generation.py --stop-ids 64      # rows end at random, after 64 tokens on average

Every peer responds to the same prompts (lengths drawn uniformly, seeded) at temperature 1 with a Llama of one shape and
random weights, prefill included; the faster of two calls counts.

Peers: align; hf-dynamic (transformers' default cache); hf-static (cache_implementation="static").
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Meter, Numbers, Setting, main, parser

SHAPE = {"vocab": 4096, "layers": 6, "width": 384, "heads": 6, "ff": 1024}
CONTEXT = 1024
Run = Callable[[list[list[int]], int], int]
"""(prompts, new tokens) -> tokens sampled, a stop token included."""


def align(setting: Setting) -> Run:
    from align.generation.generate import generate
    from align.generation.sampling_config import SamplingConfig
    from align.model.config import GPTConfig
    from align.model.gpt import GPT

    shape = {"vocab_size": SHAPE["vocab"], "layers": SHAPE["layers"], "width": SHAPE["width"]}
    network = GPT(GPTConfig(**shape, heads=SHAPE["heads"], ff_width=SHAPE["ff"], context=CONTEXT))
    stop_ids = range(SHAPE["vocab"] - setting["stop_ids"], SHAPE["vocab"])

    def run(prompts: list[list[int]], new: int) -> int:
        samples = generate(network, prompts, SamplingConfig(max_new_tokens=new), stop_ids=stop_ids)
        return int(samples.mask.sum())

    return run


def transformers(setting: Setting, cache: str | None) -> Run:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE["vocab"], hidden_size=SHAPE["width"], intermediate_size=SHAPE["ff"],
        num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["heads"],
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, attn_implementation="sdpa",
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    first_stop = SHAPE["vocab"] - setting["stop_ids"]

    def run(prompts: list[list[int]], new: int) -> int:
        width = max(map(len, prompts))
        settings = GenerationConfig(
            max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            eos_token_id=list(range(first_stop, SHAPE["vocab"])) or None, cache_implementation=cache,
        )  # fmt: skip
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
        ends = (rows >= first_stop).int()
        return int((ends.cumsum(1) - ends == 0).sum())

    return run


def measured(build: Callable[[Setting], Run]) -> Callable[[Setting], Numbers]:
    """A peer: build, warm up, time."""

    def measure(setting: Setting) -> Numbers:
        run = build(setting)
        draw = random.Random(setting["batch"])
        lengths = [draw.randint(16, 96) for _ in range(setting["batch"])]
        top = SHAPE["vocab"] - setting["stop_ids"]
        prompts = [[draw.randrange(4, top) for _ in range(length)] for length in lengths]
        run(prompts, 4)
        best: Numbers = {}
        for _ in range(2):
            with Meter() as meter:
                tokens = run(prompts, setting["new"])
            numbers = {"tokens_per_s": tokens / meter.wall, "tokens_per_cpu_s": tokens / meter.cpu}
            best = max(best or numbers, numbers, key=lambda n: n["tokens_per_s"])
        return best

    return measure


PEERS = {
    "align": measured(align),
    "hf-dynamic": measured(lambda setting: transformers(setting, None)),
    "hf-static": measured(lambda setting: transformers(setting, "static")),
}

if __name__ == "__main__":
    p = parser(__doc__, PEERS)
    p.add_argument("--batch", type=int, default=64, help="rows")
    p.add_argument("--new", type=int, default=96, help="new tokens per row")
    p.add_argument("--stop-ids", type=int, default=0, help="number of stop ids; 0: every response has full length")
    a = p.parse_args()
    name = f"batch {a.batch}, prompts 16..96, {a.new} new" + (f", {a.stop_ids} stop ids" if a.stop_ids else "")
    setting = {"name": name, "batch": a.batch, "new": a.new, "stop_ids": a.stop_ids}
    main(a, PEERS, [setting], columns=["tokens_per_s", "tokens_per_cpu_s", "peak_rss_mb"])
