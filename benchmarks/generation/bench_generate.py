"""Batched sampling with a KV cache: `align.model.generate` beside transformers' `generate`.

Every peer samples the same ragged prompts (lengths drawn evenly, seeded) at temperature 1 from a Llama of one shape
with random weights, prompt reading included. Each peer and round is a process of its own; rounds interleave the peers,
and the table shows medians over rounds of the best repetition. CPU seconds (user + system, all threads) stand beside
wall seconds: on a machine with other work compare those, with --threads 1.

Peers: ours; hf-dynamic (transformers' default cache); hf-static (cache_implementation="static").

    python benchmarks/generation/bench_generate.py --rounds 5 --threads 1
    python benchmarks/generation/bench_generate.py --stop-ids 64      # rows end at random, after 64 tokens on average
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

PEERS = ("hf-dynamic", "hf-static", "ours")
SHAPE = {"vocab": 4096, "layers": 6, "width": 384, "heads": 6, "ff": 1024}
CONTEXT = 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3, help="processes per peer (default 3)")
    parser.add_argument("--repetitions", type=int, default=2, help="calls timed per process (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--batch", type=int, default=64, help="rows (default 64)")
    parser.add_argument("--new", type=int, default=96, help="new tokens per row (default 96)")
    parser.add_argument("--shortest", type=int, default=16, help="shortest prompt, tokens (default 16)")
    parser.add_argument("--longest", type=int, default=96, help="longest prompt, tokens (default 96)")
    parser.add_argument("--stop-ids", type=int, default=0, help="how many ids end a row (default 0: none)")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_ours(args: argparse.Namespace):
    from align.model import GPT, GPTConfig, SamplingConfig, generate

    config = GPTConfig(
        vocab_size=SHAPE["vocab"],
        layers=SHAPE["layers"],
        width=SHAPE["width"],
        heads=SHAPE["heads"],
        ff_width=SHAPE["ff"],
        context=CONTEXT,
    )
    network = GPT(config)
    stop_ids = range(SHAPE["vocab"] - args.stop_ids, SHAPE["vocab"])

    def run(prompts: list[list[int]], new: int) -> int:
        samples = generate(network, prompts, SamplingConfig(max_new_tokens=new), stop_ids=stop_ids)
        return int(samples.mask.sum())

    return run


def make_transformers(args: argparse.Namespace):
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE["vocab"],
        hidden_size=SHAPE["width"],
        intermediate_size=SHAPE["ff"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["heads"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    stop_ids = list(range(SHAPE["vocab"] - args.stop_ids, SHAPE["vocab"]))

    def run(prompts: list[list[int]], new: int) -> int:
        width = max(map(len, prompts))
        settings = GenerationConfig(
            max_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            eos_token_id=stop_ids or None,
            cache_implementation="static" if args.child == "hf-static" else None,
        )
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
        ends = (rows >= SHAPE["vocab"] - args.stop_ids).int()
        return int((ends.cumsum(1) - ends == 0).sum())

    return run


def child(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    run = make_ours(args) if args.child == "ours" else make_transformers(args)
    draw = random.Random(args.batch)
    lengths = [draw.randint(args.shortest, args.longest) for _ in range(args.batch)]
    prompts = [[draw.randrange(4, SHAPE["vocab"] - args.stop_ids) for _ in range(length)] for length in lengths]
    run(prompts, 4)
    repetitions = []
    for seed in range(args.repetitions):
        torch.manual_seed(seed)
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run(prompts, args.new)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        repetitions.append({"tokens": tokens, "wall_s": wall, "cpu_s": cpu})
    best = max(repetitions, key=lambda r: r["tokens"] / r["cpu_s"])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    print(json.dumps({**best, "peak_rss_mb": peak_mb, "load": os.getloadavg()[0]}))


def table(results: dict[str, list[dict]]) -> str:
    lines = [
        "| peer | tokens per CPU s | tokens per s | peak RSS, MB | CPU time against ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    middle = {
        peer: (
            statistics.median(r["tokens"] / r["cpu_s"] for r in rounds),
            statistics.median(r["tokens"] / r["wall_s"] for r in rounds),
            statistics.median(r["peak_rss_mb"] for r in rounds),
        )
        for peer, rounds in results.items()
    }
    for peer, (per_cpu, per_wall, memory) in middle.items():
        ratio = f"{middle['ours'][0] / per_cpu:.2f}" if "ours" in middle else "-"
        lines.append(f"| {peer} | {per_cpu:.0f} | {per_wall:.0f} | {memory:.0f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.child:
        child(args)
        return
    peers = args.peers.split(",")
    if unknown := set(peers) - set(PEERS):
        sys.exit(f"unknown peers {sorted(unknown)}; choose among {', '.join(PEERS)}")
    results: dict[str, list[dict]] = {peer: [] for peer in peers}
    for number in range(args.rounds):
        # Left to right, then right to left, so that a drift of the machine meets all peers alike.
        for peer in peers if number % 2 == 0 else reversed(peers):
            command = [sys.executable, __file__, *sys.argv[1:], "--child", peer]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            results[peer].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} {peer}: {results[peer][-1]}", file=sys.stderr)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {args.threads} threads, {date.today()}; "
        f"batch {args.batch}, prompts {args.shortest}..{args.longest}, {args.new} new tokens, fp32\n"
    )
    print(table(results))
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "child")}
        args.json.write_text(json.dumps({"settings": settings, "shape": SHAPE, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
