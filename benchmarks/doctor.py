"""Seconds that `align doctor` takes on 10,000 records, start of the program included.

    python benchmarks/doctor.py [--records 10000] [--rounds 3]

Chats and pairs of the sandbox with a network of 1 M parameters, as in recipes/tiny. CPU seconds stand beside wall
seconds: on a machine that is busy with other work only the former mean anything.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from align.sandbox import SandboxConfig, write_sandbox
from align.tokenizer import train_tokenizer

GPT = {"vocab_size": 768, "layers": 4, "heads": 4, "width": 128, "context": 192}
KINDS = {"chats": ("ChatData", "sft"), "pairs": ("PreferenceData", "preferences")}


def recipe(folder: Path, kind: str) -> Path:
    """A recipe that trains on the records of one kind."""
    data, name = KINDS[kind]
    files = {
        split: str(folder / f"data/{name}_{short}.jsonl")
        for split, short in (("train", "train"), ("validation", "val"))
    }
    settings = {"tokenizer": str(folder / "tokenizer"), **files, "context": 192, "cache_dir": str(folder / "cache")}
    file = folder / f"{kind}.yaml"
    content = {
        "trainer": {"accelerator": "cpu"},
        "model": {"class_path": "align.algorithms.Pretrain", "init_args": {"gpt": GPT}},
        "data": {"class_path": f"align.data.{data}", "init_args": settings},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def measure(file: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "align", "doctor", "--config", str(file), "--json"], check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"sft_chats": options.records, "preference_pairs": options.records, "pretrain_documents": 400}
        write_sandbox(folder / "data", seed=0, config=SandboxConfig(**sizes))
        texts = (folder / "data/pretrain.jsonl").read_text().splitlines()
        train_tokenizer(texts, vocab_size=GPT["vocab_size"]).save(folder / "tokenizer")
        for kind in KINDS:
            rounds = [measure(recipe(folder, kind)) for _ in range(options.rounds)]
            wall, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
            load = os.getloadavg()[0]
            print(
                f"{options.records:,} {kind}: {wall:.1f} s wall, {cpu:.1f} s CPU (load average {load:.1f})", flush=True
            )


if __name__ == "__main__":
    main()
