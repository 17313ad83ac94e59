"""What exports lose: compares each format of a run's model with the model, in the program that the format is for.

python benchmarks/export_fidelity.py runs/tiny/dpo --reward runs/tiny/reward \
    --prompts runs/tiny/data/prompts_test.jsonl --out benchmarks/results/export_fidelity.json

On the first 20 prompts, over the source's responses at temperature 1: the mean KL divergence from the source and from
the source with its weights rounded alike (nats), the share of positions with the same likeliest token, and the change
of perplexity; and how many greedy responses are equal. On all: the judge's mean score of the
greedy responses, its ratio to the source's, and the win-rate against the source (ties count half). GPTQ and AWQ need
``--quantizer_python`` and ``--calibration``; bitsandbytes is measured where it is installed; ``--reward`` adds a reward
model's formats, compared by its scores of the first 20 prompts.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from align.cli.export import read_texts
from align.cli.prompt_file import read_prompts
from align.export.export_settings import ExportSettings
from align.export.rounding import rounded
from align.export.source import open_source
from align.export.verify import Compared, Prompt, judged, longest, prompt_ids, responses, verify
from align.export.write_export import export, open_reading
from align.io.manifest import weights_fingerprint
from align.model.gpt import GPT
from align.rewards.functions import load_reward
from align.tokenizer.prompts import as_messages

LANGUAGE = (
    {},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"quantize": "int8"},
    {"format": "gguf"},
    {"format": "gguf", "dtype": "float16"},
    {"format": "gguf", "quantize": "q8_0"},
    {"format": "gguf", "quantize": "q5_1"},
    {"format": "gguf", "quantize": "q5_0"},
    {"format": "gguf", "quantize": "q4_1"},
    {"format": "gguf", "quantize": "q4_0"},
)
CALIBRATED = ({"quantize": "gptq"}, {"quantize": "awq"})
SCORES = ({}, {"dtype": "float16"}, {"dtype": "bfloat16"}, {"quantize": "int8"})
FIRST = 20


class Measure:
    """Compares exports with the same source, one after another.

    Args:
        run: of the source.
        prompts: to respond to; the first 20 are compared in detail.
        args: the command line.
    """

    def __init__(self, run: str, prompts: Sequence[Prompt], args: argparse.Namespace) -> None:
        self.source, self.prompts, self.args = open_source(run), prompts, args
        self.ids = [prompt_ids(self.source.tokenizer, prompt) for prompt in prompts]
        self.judge = None if self.source.scalar else load_reward(args.judge)
        if not self.source.scalar:
            network, tokenizer = cast(GPT, self.source.network), self.source.tokenizer
            self.texts = responses(network, tokenizer, self.ids, args.max_new_tokens, temperature=0.0).texts

    def export(self, options: dict[str, Any]) -> dict[str, Any]:
        """The row of one format."""
        settings = ExportSettings(**options)
        with TemporaryDirectory() as folder:
            report = export(self.source, Path(folder, "out"), settings)
            new, context = self.args.max_new_tokens, self.source.network.config.context
            most = longest(self.ids, new, context)
            reading = open_reading(self.source, Path(folder, "out"), settings, context=most)
            row = {
                "format": settings.format,
                "name": settings.quantize if settings.quantize != "none" else settings.dtype,
                "bytes": sum(report["files"].values()),
            }
            row |= self.compare(Compared(reading, rounded(self.source, settings)))
            reading.close()
        return row

    def bitsandbytes(self) -> Iterator[dict[str, Any]]:
        """The float32 export loaded in 8 and 4 bits by transformers."""
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        from align.export.verify_transformers import TransformersReading

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        kinds = {
            "8 bits": BitsAndBytesConfig(load_in_8bit=True),
            "nf4": BitsAndBytesConfig(load_in_4bit=True, **four),
        }
        with TemporaryDirectory() as folder:
            out = Path(folder, "out")
            export(self.source, out, ExportSettings())
            reading = TransformersReading(out, scalar=False)
            for kind, config in kinds.items():
                reading.model = AutoModelForCausalLM.from_pretrained(out, quantization_config=config, device_map="cpu")
                row = {"format": "bitsandbytes", "name": kind, "bytes": reading.model.get_memory_footprint()}
                reading.name = f"bitsandbytes {version('bitsandbytes')}"
                yield row | self.compare(Compared(reading))

    def compare(self, compared: Compared) -> dict[str, Any]:
        """Compare the first prompts in detail, and the judge's scores on all."""
        new, context = self.args.max_new_tokens, self.source.network.config.context
        found = verify(self.source, compared, self.prompts[:FIRST], max_new_tokens=new, judge=self.judge)
        row = found.to_dict()
        if self.source.scalar or len(self.prompts) <= FIRST:
            return row
        texts = [compared.export.respond([ids], min(new, context - len(ids)))[0] for ids in self.ids]
        return row | judged(self.judge, self.prompts, self.texts, texts) | {"judged": len(texts)}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    start = f"| {row['format']} | {row['name']} | {row['bytes']:,} |"
    if "reward_export" not in row:
        return f"{start} {row['score_difference']:.2g} |"
    return (
        f"{start} {row['kl']:.2g} | {row.get('kl_rounded', float('nan')):.2g} | {row['top1']:.3f} | "
        f"{row['perplexity_change']:+.2%} | {row['same_text']} | {row['reward_export']:.4f} | "
        f"{row['reward_export'] / row['reward_source']:.3f} | {row['win_rate']:.3f} |"
    )


def all_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row, the language model's first."""
    prompts = [as_messages(prompt) for prompt in read_prompts(args.prompts, limit=args.limit)]
    measure = Measure(args.run, prompts, args)
    formats = [dict(options) for options in LANGUAGE]
    if args.quantizer_python:
        more = {"quantizer_python": args.quantizer_python, "calibration": tuple(read_texts(args.calibration, 256))}
        formats += [options | more for options in CALIBRATED]
    yield from ({"model": args.run, **measure.export(options)} for options in formats)
    if find_spec("bitsandbytes"):
        yield from ({"model": args.run, **row} for row in measure.bitsandbytes())
    if args.reward:
        measure = Measure(args.reward, prompts[:FIRST], args)
        yield from ({"model": args.reward, **measure.export(dict(options))} for options in SCORES)


def machine() -> dict[str, Any]:
    """Machine and versions of the measurement."""
    names = ("torch", "transformers", "torchao", "gguf", "xllamacpp", "compressed-tensors", "bitsandbytes")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or model directory of a language model")
    parser.add_argument("--reward", help="run folder or model directory of a reward model")
    parser.add_argument("--prompts", required=True, help="JSONL file of {'prompt'}")
    parser.add_argument("--judge", default="sandbox", help="scores greedy responses")
    parser.add_argument("--limit", type=int, default=100, help="prompts for the judge")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="maximum length of a response, tokens")
    parser.add_argument("--quantizer_python", help="python with llm-compressor, for gptq and awq")
    parser.add_argument("--calibration", help="JSONL file for gptq and awq")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    told = {
        "machine": machine(),
        "command": sys.argv[1:],
        "weights": weights_fingerprint(open_source(args.run).directory),
    }
    rows = []
    for row in all_rows(args):
        rows.append(row)
        print(line(row), flush=True)
        if args.out:  # after each row: a kill loses one
            Path(args.out).write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
