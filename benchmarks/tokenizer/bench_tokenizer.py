"""Tokenizer training, encoding and packing: align, Hugging Face tokenizers, datasets and tiktoken.

    python benchmarks/tokenizer/bench_tokenizer.py --rounds 3 --out results.json --table results.md

Each measurement runs in its own child process, so that peak memory and imports are those of one peer. Rounds run the
peers forwards and backwards in turn; the figures are medians over the rounds. CPU seconds are user + system, with
those of children; peak MB is the process's, including the documents, plus its largest child's; "others" is the share of
the machine that other processes used during the measurement.

Work
  train   documents in memory -> vocabulary and merges
  encode  documents in memory -> lists of ids, first pass (cold caches) and the pass after it (warm)
  pack    documents in memory -> blocks of ids on disk, <eos> between documents; hf is `datasets` map (tokenize, then
          group into blocks) with save_to_disk. One tokenizer.json for both peers.
tiktoken cannot train: it encodes with the merges that align learned (equal to Hugging Face's; a test holds them so).

Corpora: by default the standard library's sources of this Python, about 20 MB, and their first 1 MB; or --corpus FILE
(text, documents separated by form feeds, or split at line ends into chunks of about 10 kB).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOCK = 256
PEERS = {"train": ("hf", "ours"), "encode": ("hf", "tiktoken", "ours"), "pack": ("hf", "ours")}


def standard_library(size: int) -> list[str]:
    """Sources of the running Python, by path, up to ``size`` bytes."""
    docs: list[str] = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if size <= 0:
            break
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\f", "")
        except (UnicodeDecodeError, OSError):
            continue
        if text:
            docs.append(text)
            size -= len(text.encode())
    return docs


def documents(text: str) -> Iterator[str]:
    if "\f" in text:
        yield from filter(None, text.split("\f"))
        return
    lines: list[str] = []
    held = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        held += len(line)
        if held > 10_000:
            yield "".join(lines)
            lines, held = [], 0
    if lines:
        yield "".join(lines)


class Meter:
    """Wall and CPU seconds, and the share of the machine that other processes used."""

    def __enter__(self) -> "Meter":
        self.start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu, busy = (b - a for a, b in zip(self.start, self._now(), strict=True))
        self.wall_s, self.cpu_s = wall, cpu
        self.others = max(0.0, busy - cpu) / wall / (os.cpu_count() or 1)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        try:
            ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]))
            busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        except OSError:
            busy = float("nan")
        return time.perf_counter(), cpu, busy

    def result(self) -> dict[str, float]:
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "others": self.others}


def peak_mb() -> float:
    """Peak memory of this process plus that of its largest child."""
    unit = 1024 if sys.platform != "darwin" else 1024**2
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    try:  # ru_maxrss starts with the peak of the process that started this one; VmHWM does not
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024 + children
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit + children


def hf_untrained() -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    peer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return peer


def train(job: dict[str, Any], docs: list[str]) -> dict[str, float]:
    if job["peer"] == "hf":
        from tokenizers import pre_tokenizers, trainers

        peer = hf_untrained()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=job["vocab"], initial_alphabet=alphabet, show_progress=False)
        with Meter() as meter:
            peer.train_from_iterator(docs, trainer)
    else:
        from ours_tokenizer import bpe_train

        with Meter() as meter:
            bpe_train(docs, job["vocab"], PATTERN, job["processes"])
    return meter.result()


def encoder(job: dict[str, Any]) -> Callable[[list[str]], list[list[int]]]:
    """A function that encodes a list of documents."""
    if job["peer"] == "hf":
        from tokenizers import Tokenizer as Peer

        peer = Peer.from_file(job["tokenizer"])
        return lambda docs: [encoding.ids for encoding in peer.encode_batch(docs, add_special_tokens=False)]
    from align.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(job["tokenizer"])
    if job["peer"] == "ours":
        return lambda docs: tokenizer.encode_batch(docs, processes=job["processes"])
    import tiktoken

    coder = tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=tokenizer.spec.vocab, special_tokens={})
    return lambda docs: coder.encode_ordinary_batch(docs, num_threads=job["processes"])


def encode(job: dict[str, Any], docs: list[str]) -> dict[str, float]:
    encode_docs = encoder(job)
    with Meter() as cold:
        tokens = sum(map(len, encode_docs(docs)))
    with Meter() as warm:
        encode_docs(docs)
    again = {f"{name}_warm": value for name, value in warm.result().items()}
    return {**cold.result(), **again, "tokens": tokens}


def pack(job: dict[str, Any], docs: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        if job["peer"] == "ours":
            from ours_tokenizer import build_packed

            with Meter() as meter:
                tokens = build_packed(docs, job["tokenizer"], BLOCK, job["processes"], out)
        else:
            meter, tokens = pack_with_datasets(job, docs, out)
    return {**meter.result(), "tokens": tokens}


def pack_with_datasets(job: dict[str, Any], docs: list[str], out: str) -> tuple[Meter, int]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    datasets.disable_caching()
    peer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"], eos_token="<eos>")
    data = datasets.Dataset.from_dict({"text": docs})
    processes = job["processes"] if job["processes"] > 1 else None

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        return {"input_ids": [[*ids, peer.eos_token_id] for ids in peer(batch["text"])["input_ids"]]}

    def group(batch: dict[str, list]) -> dict[str, list]:
        flat = [number for ids in batch["input_ids"] for number in ids]
        return {"input_ids": [flat[i : i + BLOCK] for i in range(0, len(flat) // BLOCK * BLOCK, BLOCK)]}

    with Meter() as meter:
        ids = data.map(tokenize, batched=True, remove_columns=["text"], num_proc=processes)
        blocks = ids.map(group, batched=True, num_proc=processes)
        blocks.save_to_disk(out + "/blocks")
    return meter, len(blocks) * BLOCK


WORK = {"train": train, "encode": encode, "pack": pack}


def run_child(job: dict[str, Any]) -> None:
    docs = json.loads(Path(job["documents"]).read_text(encoding="utf-8"))
    megabytes = sum(len(doc.encode()) for doc in docs) / 1e6
    before = peak_mb()
    result = WORK[job["work"]](job, docs)
    print(json.dumps({**result, "mb": megabytes, "rss_mb": peak_mb(), "rss_before_mb": before}))


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Measure in a child process that has as many threads as the job has processes."""
    threads = str(job["processes"])
    parallel = "true" if job["processes"] > 1 else "false"
    env = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr}")
    return {**job, **json.loads(done.stdout.splitlines()[-1])}


def prepare(folder: Path, docs: list[str], name: str, vocabs: list[int]) -> dict[int, str]:
    """Write one tokenizer.json per vocabulary, with <eos> added, for all peers to encode with."""
    from tokenizers import Tokenizer as Peer

    from align.tokenizer import train_tokenizer

    files = {}
    for vocab in vocabs:
        train_tokenizer(docs, vocab_size=vocab + 7, pattern=PATTERN).save(folder / f"{name}-{vocab}")
        file = folder / f"{name}-{vocab}" / "tokenizer.json"
        peer = Peer.from_file(str(file))
        peer.add_special_tokens(["<eos>"])
        peer.save(str(file))
        files[vocab] = str(file)
    return files


def plan(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    if args.corpus:
        corpora = {args.corpus.stem: list(documents(args.corpus.read_text(encoding="utf-8")))}
    else:
        corpora = {f"stdlib {mb} MB": standard_library(mb * 1_000_000) for mb in args.megabytes}
    jobs = []
    for number, (name, docs) in enumerate(corpora.items()):
        file = folder / f"{number}.json"
        file.write_text(json.dumps(docs), encoding="utf-8")
        tokenizers = prepare(folder, docs, str(number), args.vocabs)
        for work in args.work:
            for vocab in args.vocabs if work != "pack" else args.vocabs[:1]:
                jobs += [
                    {"work": work, "corpus": name, "vocab": vocab, "processes": processes, "peer": peer}
                    | {"documents": str(file), "tokenizer": tokenizers[vocab]}
                    for processes in args.processes
                    for peer in PEERS[work]
                    if peer in args.peers
                ]
    return jobs


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and each peer's ratio to ours (above 1: ours is faster, or smaller)."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    keys = ("work", "corpus", "vocab", "processes", "peer")
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)
    rows = []
    for key, group in groups.items():
        numbers = {name: [run[name] for run in group] for name, value in group[0].items() if isinstance(value, float)}
        row = {name: statistics.median(values) for name, values in numbers.items()}
        rows.append(dict(zip(keys, key, strict=True)) | row | {"rounds": len(group)})
    for row in rows:
        ours = next((r for r in rows if r["peer"] == "ours" and all(r[k] == row[k] for k in keys[:4])), None)
        for name in ("wall_s", "cpu_s", "cpu_s_warm", "rss_mb"):
            if ours and name in row:
                row[f"{name}_ratio"] = row[name] / ours[name]
    return rows


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "tiktoken", "datasets"))
    lines = [
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}; medians "
        f"of {args.rounds} interleaved rounds. Ratios: peer by ours, above 1 means that ours is faster or smaller.",
        "",
        "| work | corpus | vocab | processes | peer | wall s | CPU s | MB per CPU s | ratio wall | ratio CPU "
        "| ratio CPU, warm | peak MB | ratio MB | others |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["work"], row["corpus"], row["vocab"], row["processes"], row["peer"], f"{row['wall_s']:.2f}"]
        cells += [f"{row['cpu_s']:.2f}", f"{row['mb'] / row['cpu_s']:.2f}"]
        cells += [f"{row[n]:.2f}" if n in row else "-" for n in ("wall_s_ratio", "cpu_s_ratio", "cpu_s_warm_ratio")]
        cells += [f"{row['rss_mb']:.0f}", f"{row.get('rss_mb_ratio', float('nan')):.2f}", f"{row['others']:.0%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=PEERS, default=list(PEERS), help="what to measure (default: all)")
    parser.add_argument("--peers", nargs="+", choices=PEERS["encode"], default=list(PEERS["encode"]))
    parser.add_argument("--corpus", type=Path, help="a text file instead of the standard library's sources")
    parser.add_argument("--megabytes", nargs="+", type=int, default=[1, 20], help="sizes of the default corpus, MB")
    parser.add_argument("--vocabs", nargs="+", type=int, default=[8192, 32768], help="bytes and merges, ids")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="threads or processes of each peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write all runs and medians here, JSON")
    parser.add_argument("--table", type=Path, help="write the medians here, Markdown (default: print)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_child(json.loads(args.child))
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = plan(args, Path(folder))
        for number in range(args.rounds):
            for job in jobs if number % 2 == 0 else jobs[::-1]:
                runs.append({**run_job(job), "round": number})
                print(*(job[key] for key in ("work", "corpus", "vocab", "processes", "peer")), end=" ", file=sys.stderr)
                print(f"{runs[-1]['cpu_s']:.2f} CPU s, {runs[-1]['rss_mb']:.0f} MB", file=sys.stderr)
    rows = summarise(runs)
    if args.out:
        args.out.write_text(json.dumps({"runs": runs, "medians": rows}, indent=1), encoding="utf-8")
    if args.table:
        args.table.write_text(table(rows, args), encoding="utf-8")
    else:
        print(table(rows, args))


if __name__ == "__main__":
    main()
