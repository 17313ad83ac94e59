"""Peak memory and tokens per second of streamed pretraining data, by the size of the input.

    python benchmarks/streaming.py --megabytes 10 100 1000 --out benchmarks/results/streaming.json

For each size it writes a JSONL file of generated words (Zipf's law over 50,000 words, records of 20 to 2,000 words)
into a temporary folder and reads one epoch of it with ``TextData(streaming=True)`` in a process of its own. Peak memory
is that of the reading process, and with ``--workers 1`` also that of its worker. Nothing is trained, so tokens per
second are the most that a run could train on.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]


def write_text(path: Path, megabytes: int) -> None:
    """Write records of generated words."""
    import numpy as np

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1 / np.arange(1, 27)
    draws = rng.choice(letters, (50_000, 10), p=weights / weights.sum())
    words = np.array(["".join(row[:size]) for row, size in zip(draws, rng.integers(2, 11, 50_000), strict=True)])
    shares = np.cumsum(1 / np.arange(1, len(words) + 1))
    shares /= shares[-1]
    left = megabytes * 10**6
    with path.open("w") as file:
        while left > 0:
            chosen = words[np.searchsorted(shares, rng.random(int(rng.integers(20, 2001))))]
            left -= file.write(json.dumps({"text": " ".join(chosen)}) + "\n")


def read(folder: Path, megabytes: int, settings: argparse.Namespace) -> dict[str, float]:
    """Stream an epoch of a file."""
    from itertools import takewhile

    from align.data.text_data import TextData

    data = TextData(
        str(folder / "tokenizer"),
        str(folder / f"{megabytes}.jsonl"),
        streaming=True,
        shuffle_buffer=settings.shuffle_buffer,
        packing=settings.packing,
        context=settings.context,
        batch_size=8,
        workers=settings.workers,
        cache_dir=str(folder / "cache"),
    )
    data.setup("fit")
    loader = data.train_dataloader()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in takewhile(lambda _: loader.state_dict()["positions"][0][0] == 0, loader):
        pass
    seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    tokens = int(loader.tally.tokens.sum())
    loader.close()
    peak = {"process": resource.RUSAGE_SELF} | ({"worker": resource.RUSAGE_CHILDREN} if settings.workers else {})
    return {
        "megabytes": megabytes,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
        "tokens_per_s": round(tokens / seconds),
        **{f"peak_{name}_mb": round(resource.getrusage(who).ru_maxrss / 1024, 1) for name, who in peak.items()},
    }


def main() -> int:
    """Write the files, and read each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100], help="sizes of the input, MB")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--shuffle-buffer", type=int, default=1000, help="rows")
    parser.add_argument("--packing", choices=["wrap", "best_fit"], default="wrap")
    parser.add_argument("--workers", type=int, choices=[0, 1], default=0)
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.folder is not None:
        print(json.dumps(read(settings.folder, settings.megabytes[0], settings)))
        return 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "sample.jsonl", 1)
        train = [json.loads(line)["text"] for line in (Path(folder) / "sample.jsonl").read_text().splitlines()]
        from align.tokenizer import train_tokenizer

        train_tokenizer(train, vocab_size=4096).save(Path(folder) / "tokenizer")
        for megabytes in settings.megabytes:
            write_text(Path(folder) / f"{megabytes}.jsonl", megabytes)
            command = [sys.executable, __file__, *sys.argv[1:], "--megabytes", str(megabytes), "--folder", folder]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
            (Path(folder) / f"{megabytes}.jsonl").unlink()
    if settings.out:
        shown = {name: getattr(settings, name) for name in ("context", "shuffle_buffer", "packing", "workers")}
        settings.out.write_text(json.dumps({"settings": shown, "results": results}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
