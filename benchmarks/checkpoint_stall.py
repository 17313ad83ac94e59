"""How long a checkpoint blocks training: Lightning's plugin and ours, with float32 weights and two moments.

    python benchmarks/checkpoint_stall.py --millions 12 100 --out benchmarks/results/checkpoint_stall.json

stall: until ``save_checkpoint`` returns and training continues; done: until the file is written. Medians of interleaved
rounds, with tensors of 4 MB.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from measure import machine  # noqa: E402


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--millions", type=int, nargs="+", default=[12, 100], help="parameters")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    p.add_argument("--out", type=Path, help="write the table to this JSON file")
    args = p.parse_args()
    import torch
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    from align.training.checkpoint_files import BackgroundIO

    rows = []
    for millions in args.millions:
        names = ("state_dict", "exp_avg", "exp_avg_sq")
        state = {name: {str(i): torch.randn(1_000_000) for i in range(millions)} for name in names}
        found: dict[str, list[tuple[float, float]]] = {"Lightning's TorchCheckpointIO": [], "align's BackgroundIO": []}
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for _ in range(args.rounds):
                for name, kind in zip(found, (TorchCheckpointIO, BackgroundIO), strict=True):
                    writer, begun = kind(), time.perf_counter()
                    writer.save_checkpoint(state, f"{folder}/x.ckpt")
                    stall = time.perf_counter() - begun
                    writer.teardown()
                    found[name].append((stall, time.perf_counter() - begun))
        for name, pairs in found.items():
            stall, done = (round(statistics.median(column), 3) for column in zip(*pairs, strict=True))
            rows.append({"parameters": millions * 10**6, "plugin": name, "stall_s": stall, "done_s": done})
            print(f"| {millions} M, {12 * millions / 1000:.2f} GB | {name} | {stall} | {done} |", flush=True)
    print(f"{machine()}; 1 thread; {args.rounds} rounds; {date.today()}")
    if args.out:
        facts = {"command": " ".join(sys.argv), "machine": machine(), "date": str(date.today()), "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
