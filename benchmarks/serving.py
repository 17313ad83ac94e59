"""Tokens per second that streaming clients get from `align serve`, or from any server with OpenAI's chat completions.

    python benchmarks/serving.py runs/tiny/dpo                          # starts `align serve runs/tiny/dpo`
    python benchmarks/serving.py runs/tiny/dpo --serve "--quantize q8_0 --slots 32"
    python benchmarks/serving.py --random runs/tiny/tokenizer           # a random network of 12 M parameters
    python benchmarks/serving.py --url http://127.0.0.1:8000/v1         # a server that is already running

Every client sends one request after another, each with a different prompt, at temperature 1, and reads the whole
stream. A round is timed from the first request to the last token; tokens are those of the server's `usage`. The clients
run in this process and share the machine's cores with the server: `client_cpu_s` is their CPU time,
`server_cpu_s` that of the processes of `align serve` (Linux). The table shows medians; the file has every round.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Meter, machine

WORDS = ["river", "stone", "lantern", "winter", "orchard", "signal", "harbour", "copper", "meadow", "engine", "violet"]


def main() -> None:
    a = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = str(_random_model(Path(folder) / "random-12m", a.random)) if a.random else a.model
        with _server(model, a) as url:
            rows = [asyncio.run(_measured(url, clients, a)) for clients in a.clients]
    print("| clients | tokens/s | tokens per CPU second of the server | first token, ms |\n|---|---|---|---|")
    for row in rows:
        per_cpu = f"{row['tokens'] / row['server_cpu_s']:.0f}" if row["server_cpu_s"] else "-"
        print(f"| {row['clients']} | {row['tokens_per_s']:.0f} | {per_cpu} | {row['first_token_ms']:.1f} |")
    print(f"\n{machine()}; load {os.getloadavg()[0]:.1f}; {a.rounds} rounds, medians; {date.today()}")
    if a.out:
        facts = {"label": a.label, "command": " ".join(sys.argv), "machine": machine(), "date": str(date.today())}
        known = json.loads(a.out.read_text()) if a.out.exists() else []
        kept = [run for run in known if run["label"] != a.label]
        a.out.write_text(json.dumps([*kept, facts | {"rows": rows}], indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", help="the model for `align serve`")
    p.add_argument("--random", type=Path, metavar="TOKENIZER", help="serve a random network with this tokenizer")
    p.add_argument("--url", help="measure the server at this base URL, which ends in /v1")
    p.add_argument("--serve", default="", help="flags of `align serve`, in one string")
    p.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="requests in flight")
    p.add_argument("--requests", type=int, default=4, help="requests of each client in a round")
    p.add_argument("--new", type=int, default=64, help="longest response, tokens")
    p.add_argument("--rounds", type=int, default=3, help="rounds, after one warm-up round")
    p.add_argument("--label", default="serving", help="name of the run in --out")
    p.add_argument("--out", type=Path, help="JSON file of runs; replaces the run of the same label")
    a = p.parse_args()
    if sum(bool(given) for given in (a.model, a.random, a.url)) != 1:
        p.error("give one of MODEL, --random and --url")
    return a


def _random_model(folder: Path, tokenizer_folder: Path) -> Path:
    """A Llama-shaped network of about 12 M parameters."""
    from align.io.directory import save_network
    from align.model import GPT, GPTConfig
    from align.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder)
    config = GPTConfig(
        vocab_size=-(-tokenizer.vocab_size // 64) * 64, layers=6, heads=6, width=384, ff_width=1152, context=1024
    )
    network = GPT(config)
    network.initialise(0)
    folder.mkdir()
    tokenizer.save(folder)
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(network, folder, **ids)
    print(f"{network.num_parameters():,} parameters", file=sys.stderr)
    return folder


@contextmanager
def _server(model: str | None, a: argparse.Namespace) -> Iterator[str]:
    """The base URL of a server that runs during the block."""
    if a.url:
        yield a.url
        return
    command = [sys.executable, "-m", "align", "serve", model, "--port", "0", *shlex.split(a.serve)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+?/v1", process.stdout.readline())
        assert found, "align serve printed no URL"
        yield found.group()
    finally:
        process.terminate()
        assert process.wait(60) == 0, "align serve did not exit cleanly"


async def _measured(url: str, clients: int, a: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rounds with this many clients, and the rounds."""
    rounds = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        async with session.get(f"{url}/models") as response:
            name = (await response.json())["data"][0]["id"]
        for number in range(a.rounds + 1):
            found = await _round(session, url, name, clients, a)
            print(f"{clients} clients, round {number}: {json.dumps(found)}", file=sys.stderr)
            rounds.append(found)
    medians = {key: statistics.median(one[key] for one in rounds[1:]) for key in rounds[0]}
    return {"clients": clients, **medians, "rounds": rounds[1:]}


async def _round(
    session: aiohttp.ClientSession, url: str, name: str, clients: int, a: argparse.Namespace
) -> dict[str, float]:
    waits: list[float] = []

    async def client(number: int) -> int:
        tokens = 0
        for request in range(a.requests):
            words = [WORDS[(number * 5 + request * 3 + i * i) % len(WORDS)] for i in range(12)]
            body = {
                "model": name, "messages": [{"role": "user", "content": " ".join(words)}], "temperature": 1,
                "max_tokens": a.new, "seed": number * 1000 + request, "stream": True,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
            tokens += await _streamed(session, f"{url}/chat/completions", body, waits)
        return tokens

    before = _server_cpu_s()
    with Meter() as meter:
        tokens = sum(await asyncio.gather(*(client(number) for number in range(clients))))
    return {
        "tokens_per_s": tokens / meter.wall,
        "first_token_ms": 1000 * statistics.median(waits),
        "tokens": tokens,
        "wall_s": meter.wall,
        "client_cpu_s": meter.cpu,
        "server_cpu_s": _server_cpu_s() - before,
    }


def _server_cpu_s() -> float:
    """CPU seconds so far of this process's descendants; 0 if it started no server."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours: set[int] = set()
    while found := {pid for pid, parent in parents.items() if parent in {os.getpid(), *ours}} - ours:
        ours |= found
    return sum(seconds[pid] for pid in ours)


async def _streamed(session: aiohttp.ClientSession, url: str, body: dict[str, Any], waits: list[float]) -> int:
    """Read one response to its end; returns its tokens and notes the seconds to the first of them."""
    started, first, last = time.perf_counter(), True, b""
    async with session.post(url, json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if first and b'"content":"' in line.replace(b": ", b":") and b'"content":""' not in line:
                waits.append(time.perf_counter() - started)
                first = False
            if line.startswith(b"data: {"):
                last = line
    return int(json.loads(last[6:])["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
