"""``align export``: a trained model as others read it."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonargparse

from align.cli.errors import UsageError
from align.cli.parsing import make_parser, parse
from align.cli.sampling import read_prompts

if TYPE_CHECKING:
    from align.export.export_settings import ExportSettings, Text
    from align.export.write_export import Check


def main(args: list[str]) -> int:
    """Export a model.

    Args:
        args: the command line after ``align export``.

    Returns:
        int: 0.
    """
    options = parse(_parser(), args)
    _check_usage(options)
    settings = _settings(options)
    from align.export.source import open_source
    from align.export.write_export import check_out, export

    check_out(Path(options.out))  # before minutes of reading
    source = open_source(options.model, best=options.best, mode=options.mode, base=options.base)
    print(f"read {source.origin}", file=sys.stderr)
    report = export(
        source,
        options.out,
        settings,
        checked=_checked(options, scalar=source.scalar) if options.verify else None,
        data_cards=[Path(card) for card in options.data_cards or ()],
    )
    if options.json:
        print(json.dumps({"out": options.out, "source": source.origin, **report}, ensure_ascii=False))
    else:
        _show(options.out, report)
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    from align.export.export_settings import Dtype, ExportSettings, Format, Quantization

    parser = make_parser(
        "export",
        "Write a model as others read it: safetensors for transformers and vLLM, or GGUF for llama.cpp; quantized or "
        "not; with its card. --verify reads the result again and fails where it differs too much.",
    )
    default = ExportSettings()
    parser.add_argument(
        "model", help="run folder (its model/), .ckpt of a run, LoRA adapter, model directory, or Hub id"
    )
    parser.add_argument(
        "--out", required=True, help="directory to write: free, or an earlier export, which is replaced"
    )
    parser.add_argument("--best", help="of a run: pick model/ or the checkpoint with the best METRIC, as in val/loss")
    parser.add_argument("--mode", choices=["min", "max"], default="min", help="whether a low or a high METRIC is best")
    parser.add_argument("--base", help="of an adapter: the model it is merged into (default: the one that it names)")
    parser.add_argument(
        "--format",
        choices=get_args(Format),
        default=default.format,
        help="hf: a directory for transformers and vLLM; gguf: model.gguf for llama.cpp",
    )
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), default=default.dtype, help="type of weights; auto: as in the source"
    )
    parser.add_argument(
        "--quantize",
        choices=get_args(Quantization),
        default=default.quantize,
        help="int8 (torchao, weights only), gptq and awq (4 bits, llm-compressor) in hf; q8_0 to q4_0 in gguf",
    )
    parser.add_argument(
        "--calibration", help="gptq, awq: JSONL file of {'text'}, {'messages'} or {'prompt', 'chosen'} to look at"
    )
    parser.add_argument("--calibration_limit", type=int, default=256, help="records of --calibration to use")
    parser.add_argument("--quantizer_python", help="gptq, awq: python of an environment that has llm-compressor")
    parser.add_argument("--max_shard_size", default="5GB", help="weights above this go to several files, as in 500MB")
    parser.add_argument("--license", help="SPDX name for the card (default: the one that the source's card names)")
    parser.add_argument("--intended_use", help="sentence for the card (default: one that fits the stage)")
    parser.add_argument("--limits", help="sentence for the card (default: what holds for any such model)")
    parser.add_argument("--data_cards", nargs="+", help="Markdown files that go along, linked under Data")
    _add_verification(parser)
    parser.add_argument("--json", action="store_true", help="print files, bytes and differences as one JSON object")
    return parser


def _add_verification(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the result with transformers (hf) or llama.cpp (gguf) and compare it with the source; a difference "
        "above the tolerance is an error, and nothing is written",
    )
    parser.add_argument(
        "--prompts", help="JSONL file of {'prompt': text or messages} to verify with (default: 8 plain ones)"
    )
    parser.add_argument("--limit", type=int, default=20, help="prompts of --prompts to verify with")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer when verifying, tokens")
    parser.add_argument(
        "--judge",
        help="score both models' greedy answers: sandbox, module:function, or the directory of a reward model",
    )
    for name, what in (
        ("difference", "largest difference of a log-probability, nats (of a reward model's score)"),
        ("perplexity", "rise of the perplexity, as a share"),
        ("reward", "fall of the judge's mean score, as a share"),
    ):
        parser.add_argument(
            f"--tolerance_{name}", type=float, help=f"{what} (default: by precision, see docs/export.md)"
        )


def _check_usage(options: jsonargparse.Namespace) -> None:
    for name in ("limit", "max_new_tokens", "calibration_limit"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    if not options.verify:
        for name in ("prompts", "judge", "tolerance_difference", "tolerance_perplexity", "tolerance_reward"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} is for --verify, which is not given")
    for card in options.data_cards or ():
        if not Path(card).is_file():
            raise UsageError(f"--data_cards: {card}: no such file")


def _settings(options: jsonargparse.Namespace) -> "ExportSettings":
    from align.export.export_settings import ExportSettings, parse_size

    texts = tuple(read_texts(options.calibration, options.calibration_limit))
    try:
        return ExportSettings(
            format=options.format,
            dtype=options.dtype,
            quantize=options.quantize,
            max_shard_bytes=parse_size(options.max_shard_size),
            calibration=texts,
            quantizer_python=options.quantizer_python,
            licence=options.license,
            intended_use=options.intended_use,
            limits=options.limits,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_texts(file: str | None, limit: int) -> "Iterator[Text]":
    """Whole texts and chats of a JSONL file, up to ``limit``.

    Raises:
        ValueError: a line holds neither; the message names file and line.
    """
    if file is None:
        return
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, limit), 1):
            try:
                yield _text(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(
                    f"{file}:{number}: no calibration text: give 'text', 'messages', or 'prompt' with 'chosen' or "
                    "'completion'"
                ) from None


def _text(record: dict[str, Any]) -> "Text":
    for name in ("text", "messages"):
        if name in record:
            found: Text = record[name]
            return found
    answer = record["chosen"] if "chosen" in record else record["completion"]
    if isinstance(record["prompt"], str):
        return f"{record['prompt']}{answer}"
    return [*record["prompt"], *answer]


def _checked(options: jsonargparse.Namespace, *, scalar: bool) -> "Check":
    from align.export.verify import PLAIN_PROMPTS, Tolerance
    from align.export.write_export import Check

    judge = None
    if options.judge:
        if scalar:
            raise UsageError("--judge scores answers, and a reward model gives none: leave it out")
        from align.rewards.functions import load_reward

        judge = load_reward(options.judge)
    return Check(
        prompts=read_prompts(options.prompts, limit=options.limit) if options.prompts else PLAIN_PROMPTS,
        max_new_tokens=options.max_new_tokens,
        judge=judge,
        tolerance=Tolerance(options.tolerance_difference, options.tolerance_perplexity, options.tolerance_reward),
    )


def _show(out: str, report: dict[str, Any]) -> None:
    size = sum(report["files"].values())
    kind = report["quantize"] if report["quantize"] != "none" else report["dtype"]
    print(f"wrote {out}: {report['format']}, {kind}, {len(report['files'])} weight files, {size:,} bytes")
    found = report["verification"]
    if found is None:
        print("not compared with the source: --verify does")
        return
    print(f"read by {found['read_by']}, {found['prompts']} prompts, {found['tokens']} places")
    for name, value in found.items():
        if name not in ("read_by", "prompts", "tokens"):
            print(f"  {name.replace('_', ' '):<20} {value:.6g}")
