"""Concurrent streaming requests to `align serve`, a quarter of them cancelled half-way, beside `align.generate`.

    python benchmarks/serving.py runs/seed1/sft --prompts runs/seed1/data/prompts_test.jsonl --rounds 5

Peers, of the same prompts, seeds and settings; answers are as long as the model makes them:

batch: `generate` on ids, in batches of as many rows as there are clients. No text, no HTTP.
served: `align serve` in a process of its own, asked by as many clients at once, each with its next request as soon as
    the last is over, through OpenAI's asynchronous client or plain httpx, in this process. Every text is compared with
    what the server's engine answers to the request alone. Of a cancelled answer only what was received counts.

`engine_cpu_s` is that of the server's process that computes, `front_cpu_s` of that which speaks HTTP, `cpu_s` of both.
That of the clients, `client_cpu_s`, is in none of them; but they share the cores, and so have a part in `wall_s`.
Linux only.
"""

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Meter, Numbers, Setting, main, parser

WARM_UP = 8  # requests
KEPT = [f"{process}_{key}" for process in ("front", "engine") for key in ("threads", "fds", "rss_mb")]


def requests(setting: Setting) -> list[list[dict[str, str]]]:
    """Prompts as messages; request i has seed i and, for i % 4 == 3, is cancelled."""
    lines = Path(setting["prompts"]).read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    random.Random(0).shuffle(prompts)
    return [prompts[i % len(prompts)] for i in range(setting["requests"])]


def batch(setting: Setting) -> Numbers:
    from align.cli.model_path import model_directory
    from align.generation.generate import generate
    from align.generation.sampling_config import SamplingConfig
    from align.io.directory import load_network
    from align.tokenizer import Tokenizer

    directory = model_directory(setting["model"])
    tokenizer, network = Tokenizer.load(directory), load_network(directory).eval()
    ids = [tokenizer.render_chat(messages, add_generation_prompt=True).ids for messages in requests(setting)]
    sampling = SamplingConfig(max_new_tokens=setting["new"])
    generate(network, ids[:WARM_UP], sampling, stop_ids=tokenizer.stop_ids)
    tokens = 0
    with Meter() as meter:
        for start in range(0, len(ids), setting["clients"]):
            rows = ids[start : start + setting["clients"]]
            seeds = list(range(start, start + len(rows)))
            samples = generate(network, rows, sampling, stop_ids=tokenizer.stop_ids, seeds=seeds)
            tokens += int(samples.mask.sum())
    return {
        "tokens_per_s": tokens / meter.wall,
        "tokens_per_cpu_s": tokens / meter.cpu,
        "tokens": tokens,
        "wall_s": meter.wall,
        "cpu_s": meter.cpu,
    }


def alone(setting: Setting) -> tuple[list[str], list[int]]:
    """Texts and token counts of the server's engine with one row: what every client has to get."""
    from align.cli.model_path import model_directory
    from align.generation.sampling_config import SamplingConfig
    from align.io.directory import load_network
    from align.serve.engine import Engine
    from align.serve.requests import Piece, Request
    from align.tokenizer import Tokenizer

    directory = model_directory(setting["model"])
    tokenizer, asked = Tokenizer.load(directory), requests(setting)
    pieces: list[list[Piece]] = [[] for _ in asked]
    over = threading.Semaphore(0)

    def hear(i: int, piece: Piece) -> None:
        pieces[i].append(piece)
        if piece.reason is not None:
            over.release()

    with Engine(load_network(directory).eval(), tokenizer, max_rows=1, max_waiting=len(asked)) as engine:
        for i, messages in enumerate(asked):
            ids = tokenizer.render_chat(messages, add_generation_prompt=True).ids
            engine.submit(Request(ids, SamplingConfig(max_new_tokens=setting["new"]), i), partial(hear, i))
        for _ in asked:
            over.acquire()
    return ["".join(piece.text for piece in row) for row in pieces], [row[-1].tokens for row in pieces]


def served(setting: Setting) -> Numbers:
    texts, counts = alone(setting)
    command = [sys.executable, "-m", "align", "serve", setting["model"], "--name", "m", "--port", "0"]
    command += ["--max_concurrency", str(setting["clients"]), "--max_waiting", str(setting["clients"])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+/v1", server.stdout.readline()).group()
        found = asyncio.run(_ask_all(setting, url, server.pid, texts, counts))
    finally:
        server.terminate()
        assert server.wait(60) == 0, "align serve did not end orderly"
    return found


async def _ask_all(setting: Setting, url: str, pid: int, texts: list[str], counts: list[int]) -> Numbers:
    ask, close = CLIENTS[setting["client"]](url, setting["clients"])
    messages = requests(setting)
    tokens, errors, wrong, waits = 0, 0, 0, []

    async def one(i: int) -> None:
        nonlocal tokens, errors, wrong
        cancelled, text, started = i % 4 == 3, "", time.perf_counter()
        wanted = len(texts[i]) / 2 if cancelled else float("inf")
        usage = None
        try:
            body = {"model": "m", "messages": messages[i], "seed": i, "max_tokens": setting["new"], "stream": True}
            stream = ask(body | {"stream_options": {"include_usage": True}})
            async for piece, counted in stream:
                if piece and not text:
                    waits.append(time.perf_counter() - started)
                text, usage = text + piece, counted or usage
                if len(text) >= wanted:
                    break
            await stream.aclose()
        except Exception as error:
            errors += 1
            print(f"request {i}: {type(error).__name__}: {error}", file=sys.stderr)
            return
        if cancelled:
            wrong += not texts[i].startswith(text)
            tokens += round(counts[i] * len(text) / max(1, len(texts[i])))
        else:
            wrong += text != texts[i] or usage != counts[i]
            tokens += counts[i]

    async def client(numbers: "asyncio.Queue[int]") -> None:
        while not numbers.empty():
            await one(numbers.get_nowait())

    async def everyone(count: int, clients: int) -> None:
        numbers: asyncio.Queue[int] = asyncio.Queue()
        for i in range(count):
            numbers.put_nowait(i)
        await asyncio.gather(*(client(numbers) for _ in range(clients)))

    await everyone(setting["clients"] * 2, setting["clients"])
    await asyncio.sleep(0.5)
    before = _processes(pid)
    tokens, errors, wrong = 0, 0, 0
    waits.clear()
    with Meter() as meter:
        await everyone(setting["requests"], setting["clients"])
    await close()
    await asyncio.sleep(1)
    state = await _health(url)
    after = _processes(pid)
    front, engine = (after[f"{process}_cpu_s"] - before[f"{process}_cpu_s"] for process in ("front", "engine"))
    return {
        "tokens_per_s": tokens / meter.wall,
        "tokens_per_cpu_s": tokens / (front + engine),
        "tokens_per_engine_cpu_s": tokens / engine,
        "tokens": tokens,
        "wall_s": meter.wall,
        "errors": errors,
        "wrong_answers": wrong,
        "cancelled": len(messages) // 4,
        "first_text_ms": 1000 * statistics.median(waits),
        "left_running": state["running"] + state["waiting"],
        **{f"{key}_before": before[key] for key in KEPT},
        **{f"{key}_after": after[key] for key in KEPT},
        "client_cpu_s": meter.cpu,
        "front_cpu_s": front,
        "engine_cpu_s": engine,
        "cpu_s": front + engine,
    }


def _processes(pid: int) -> Numbers:
    """Of the process that speaks HTTP and of its child, the engine."""
    # Its other child is Python's resource tracker.
    spawned = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if b"spawn_main" in path.read_bytes()]
    engine = next(int(folder.name) for folder in spawned if f"PPid:\t{pid}\n" in (folder / "status").read_text())
    both = {"front": _process(pid), "engine": _process(engine)}
    return {f"{process}_{key}": value for process, numbers in both.items() for key, value in numbers.items()}


def _process(pid: int) -> Numbers:
    """Threads, file descriptors, resident memory and CPU seconds of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return {
        "threads": int(fields["Threads"]),
        "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
        "cpu_s": (int(times[11]) + int(times[12])) / 100,
    }


async def _health(url: str) -> dict[str, int]:
    import httpx2

    async with httpx2.AsyncClient() as client:
        return (await client.get(url.removesuffix("/v1") + "/health")).json()


def through_openai(url: str, clients: int) -> tuple[Callable, Callable]:
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def ask(body: dict):
        async with await client.chat.completions.create(**body) as stream:
            async for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                yield text or "", chunk.usage and chunk.usage.completion_tokens

    return ask, client.close


def through_httpx(url: str, clients: int) -> tuple[Callable, Callable]:
    import httpx2

    client = httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=clients))

    async def ask(body: dict):
        async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    text = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
                    yield text or "", chunk.get("usage") and chunk["usage"]["completion_tokens"]

    return ask, client.aclose


CLIENTS = {"openai": through_openai, "httpx": through_httpx}
PEERS = {"batch": batch, "served": served}

if __name__ == "__main__":
    p = parser(__doc__, PEERS)
    p.add_argument("model", nargs="?", help="model directory or a stage's folder")
    p.add_argument("--prompts", help="JSONL file of prompts")
    p.add_argument("--clients", type=int, default=50, help="requests at once")
    p.add_argument("--requests", type=int, default=400, help="requests in all")
    p.add_argument("--new", type=int, default=128, help="longest answer, tokens")
    p.add_argument("--client", choices=CLIENTS, default="httpx", help="what asks")
    a = p.parse_args()
    name = f"{a.requests} requests of {a.clients} {a.client} clients"
    setting = {"name": name} | {
        key: getattr(a, key) for key in ("model", "prompts", "clients", "requests", "new", "client")
    }
    columns = ["tokens_per_s", "tokens", "wall_s", "tokens_per_cpu_s", "tokens_per_engine_cpu_s"]
    columns += ["cpu_s", "engine_cpu_s", "front_cpu_s", "client_cpu_s"]
    columns += ["errors", "wrong_answers", "left_running", "first_text_ms"]
    columns += [f"{key}_{when}" for key in KEPT for when in ("before", "after")]
    main(a, PEERS, [setting], columns=columns)
