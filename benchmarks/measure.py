"""How every benchmark here measures: each peer in its own process, interleaved rounds, medians.

A script declares its peers (functions from a setting to a dictionary of numbers) and calls ``main``. Round 0 runs the
peers from left to right, round 1 from right to left, and so on, so that a machine that slows down affects all of them.
Peak memory is that of the child process.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

Setting = dict[str, Any]
Numbers = dict[str, float]
Peers = Mapping[str, Callable[[Setting], Numbers]]


def parser(doc: str, peers: Peers) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--peers", default=",".join(peers), help="comma list")
    p.add_argument("--rounds", type=int, default=3, help="interleaved repetitions; medians are reported")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each peer")
    p.add_argument("--out", type=Path, help="write every measurement and the table to this JSON file")
    p.add_argument("--child", help=argparse.SUPPRESS)
    return p


def main(args: argparse.Namespace, peers: Peers, settings: Sequence[Setting], *, columns: Sequence[str]) -> None:
    """Measure every peer in every setting and print a Markdown table of medians.

    Args:
        args: of ``parser``.
        peers: name -> function that measures.
        settings: what is equal for all peers; each has a ``name``, and may have ``peers``, those to run (without it:
            all), and ``python``, the interpreters of peers that need a different one.
        columns: the numbers that the table shows.
    """
    if args.child:
        job = json.loads(args.child)
        numbers = peers[job["peer"]](job["setting"])
        print("@@" + json.dumps(numbers | {"peak_rss_mb": round(peak_rss_mb())}), flush=True)
        return
    names = args.peers.split(",")
    rows: list[dict[str, Any]] = []
    for setting in settings:
        found: dict[str, list[Numbers]] = {name: [] for name in names if name in setting.get("peers", names)}
        for number in range(args.rounds):
            for name in found if number % 2 == 0 else reversed(found):
                numbers = _child(args, name, setting)
                found[name].append(numbers)
                print(f"{setting['name']} round {number} {name}: {json.dumps(numbers)}", file=sys.stderr, flush=True)
        for name in found:
            medians = {key: statistics.median(n[key] for n in found[name]) for key in found[name][0]}
            rows.append({"setting": setting["name"], "peer": name, **medians, "rounds": found[name]})
    print(_table(rows, columns))
    print(f"\n{machine()}; {args.threads} thread(s); {args.rounds} interleaved rounds, medians; {date.today()}")
    if args.out:
        facts = {
            "command": " ".join(sys.argv),
            "machine": machine(),
            "date": str(date.today()),
            "threads": args.threads,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


def _child(args: argparse.Namespace, peer: str, setting: Setting) -> Numbers:
    threads = str(args.threads)
    env = os.environ | {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    env |= {"TOKENIZERS_PARALLELISM": "true" if args.threads > 1 else "false", "HF_HUB_OFFLINE": "1"}
    job = json.dumps({"peer": peer, "setting": setting})
    python = setting.get("python", {}).get(peer, sys.executable)
    command = [python, sys.argv[0], "--threads", threads, "--child", job]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = [line[2:] for line in result.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{peer} failed in {setting['name']}:\n{result.stderr[-2000:]}")
    return json.loads(lines[-1])


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = ["setting", "peer", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["setting"], row["peer"]] + [f"{row[c]:.4g}" if c in row else "-" for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peak_rss_mb() -> float:
    """Peak resident memory of this process. Without /proc it includes the parent's memory at the fork."""
    status = Path("/proc/self/status")
    if status.is_file():
        return rss_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb(field: str) -> float:
    """``VmHWM``, the peak, or ``VmRSS``, the memory resident now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


class Meter:
    """Wall and CPU seconds (user + system, including children that were waited for) of a ``with`` block."""

    def __enter__(self) -> "Meter":
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))


def machine() -> str:
    """Processor and cores."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
