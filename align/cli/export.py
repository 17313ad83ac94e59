"""``align export``: a trained model in a format that other programs read."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.cli.errors import UsageError
from align.cli.prompt_file import read_records, require_columns
from align.cli.settings import parse_settings, require_at_least, setting
from align.export.export_settings import Dtype, ExportSettings, Format, Quantization, parse_size

if TYPE_CHECKING:
    from align.export.export_settings import Text
    from align.export.write_export import Check
    from align.tokenizer.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """How an export is compared with its source."""

    verify: bool = False
    """Read the result with transformers (hf) or llama.cpp (gguf) and compare it with the source; a difference above the
    tolerance is an error, and nothing is written"""
    prompts: str | None = None
    """JSONL file of {'prompt': text or messages} to verify with; null: 8 plain ones"""
    limit: int = 20
    """Largest number of prompts to read from --prompts"""
    max_new_tokens: int = 128
    """Longest response that --judge compares, tokens"""
    judge: str | None = None
    """Reward that scores the greedy responses of both models: sandbox, constraints, constraints_strict (both with
    --prompts that state constraints), module:function (prompts, responses) -> scores, the class path of a Reward, or
    the directory of a reward model"""
    tolerance_kl: float | None = None
    """Largest mean KL divergence of the export from the source, nats; null: by precision (docs/export.md)"""
    tolerance_rounded: float | None = None
    """The same, from the source with its weights rounded as in the export; null: by precision"""
    tolerance_score: float | None = None
    """Largest difference of a reward model's score; null: by precision"""
    tolerance_perplexity: float | None = None
    """Largest rise of the perplexity, as a fraction; null: by precision"""
    tolerance_reward: float | None = None
    """Largest fall of the mean score of --judge, as a fraction; null: by precision"""

    def __post_init__(self) -> None:
        """Reject invalid settings, and those that nothing would read."""
        require_at_least(self, limit=1, max_new_tokens=1)
        if not self.verify:
            tolerances = (f"tolerance_{name}" for name in ("kl", "rounded", "score", "perplexity", "reward"))
            for name in ("prompts", "judge", *tolerances):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for --verify, which is not given")


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a model, with its card, as safetensors for transformers and vLLM, or as GGUF for llama.cpp.

    It can be quantized on the way. --verify reads the result again and fails if it differs too much from the source.

    Raises:
        ValueError: a setting is invalid, or two contradict each other.
    """

    model: str = setting(positional=True)
    """Run folder (its model/), .ckpt of a run, LoRA adapter, model directory, GGUF file, or Hub id"""
    out: str
    """Directory to write: a new one, or an earlier export, which is replaced"""
    best: str | None = None
    """Of a run: pick model/ or the checkpoint with the best value of this metric, such as val/loss"""
    mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value of --best is the best"""
    base: str | None = None
    """Of an adapter: the model into which it is merged; null: the one that it names"""
    format: Format = ExportSettings.format
    """hf: a directory for transformers and vLLM; gguf: model.gguf for llama.cpp"""
    dtype: Dtype = ExportSettings.dtype
    """Type of the weights; auto: as in the source"""
    quantize: Quantization = ExportSettings.quantize
    """int8 (torchao, weights only), gptq and awq (4 bits, llm-compressor) in hf; q8_0 to q4_0 in gguf"""
    calibration: str | None = None
    """For gptq and awq: file, glob or Hub id of {'text'}, {'messages'} or {'prompt', 'chosen'}, calibration data"""
    calibration_limit: int = 256
    """Largest number of records to read from --calibration"""
    quantizer_python: str | None = None
    """For gptq and awq: the python of an environment with llm-compressor"""
    max_shard_size: str = "5GB"
    """Weights larger than this are split into several files, such as 500MB"""
    license: str | None = None
    """SPDX name for the card; null: the one that the source's card names"""
    intended_use: str | None = None
    """Sentence for the card; null: one that follows from the stage"""
    limits: str | None = None
    """Sentence for the card; null: what holds for any such model"""
    data_cards: tuple[str, ...] = ()
    """Markdown files to copy beside the card, which links them under Data"""
    verification: VerifySettings = VerifySettings()
    """Comparison with the source"""
    json: bool = False
    """Print files, bytes and differences as one JSON object"""

    def __post_init__(self) -> None:
        """Reject invalid settings, before a calibration file is read."""
        require_at_least(self, calibration_limit=1)
        parse_size(self.max_shard_size)
        for card in self.data_cards:
            if not Path(card).is_file():
                raise ValueError(f"--data_cards: {card}: no such file")

    def to_settings(self) -> ExportSettings:
        """The part that decides what is written.

        Raises:
            UsageError: two settings contradict each other.
            ValueError: a record of the calibration file has no text.
        """
        texts = tuple(read_texts(self.calibration, self.calibration_limit))
        try:
            return ExportSettings(
                format=self.format,
                dtype=self.dtype,
                quantize=self.quantize,
                max_shard_bytes=parse_size(self.max_shard_size),
                calibration=texts,
                quantizer_python=self.quantizer_python,
                licence=self.license,
                intended_use=self.intended_use,
                limits=self.limits,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error


def main(args: list[str]) -> int:
    """Export a model.

    Args:
        args: the command line after ``align export``.

    Returns:
        int: 0.
    """
    options = parse_settings(ExportArguments, "export", args)
    settings = options.to_settings()
    from align.export.source import open_source
    from align.export.write_export import check_out, export

    check_out(Path(options.out))  # before minutes of reading
    source = open_source(options.model, best=options.best, mode=options.mode, base=options.base)
    print(f"read {source.origin}", file=sys.stderr)
    check = _check(options.verification, scalar=source.scalar) if options.verification.verify else None
    cards = [Path(card) for card in options.data_cards]
    report = export(source, options.out, settings, checked=check, data_cards=cards)
    if options.json:
        print(json.dumps({"out": options.out, "source": source.origin, **report}, ensure_ascii=False))
    else:
        _show(options.out, report)
    return 0


def read_texts(file: str | None, limit: int) -> "Iterator[Text]":
    """The first ``limit`` texts and chats of a file, as calibration data.

    Args:
        file: what ``data.init_args.train`` takes; None: there are none.
        limit: largest number of records to read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file can't be read, or a record has neither a text nor a chat; names the file and the line.
    """
    from align.data.readers import BadRecords, find_sources

    bad = BadRecords("stop", hint="")
    sources = [] if file is None else find_sources(file)
    for record in islice(chain.from_iterable(source.records(bad) for source in sources), limit):
        try:
            yield _text(record.fields)
        except (KeyError, TypeError):
            raise ValueError(
                f"{record.source}: {record.location}: no calibration text: give 'text', 'messages', or 'prompt' with "
                "'chosen' or 'completion'"
            ) from None


def _text(record: dict[str, Any]) -> "Text":
    for name in ("text", "messages"):
        if name in record:
            found: Text = record[name]
            return found
    response = record["chosen"] if "chosen" in record else record["completion"]
    if isinstance(record["prompt"], str):
        return f"{record['prompt']}{response}"
    return [*record["prompt"], *response]


def _check(options: VerifySettings, *, scalar: bool) -> "Check":
    from align.export.verify import PLAIN_PROMPTS, Tolerance
    from align.export.write_export import Check

    judge: Any = None
    columns: Sequence[str] = ()
    if options.judge:
        if scalar:
            raise UsageError("--judge scores responses, and a reward model writes none; leave it out")
        from align.rewards.functions import load_reward

        judge = load_reward(options.judge)
        require_columns(judge, options.prompts)
        columns = judge.columns
    prompts: Sequence[Prompt] = PLAIN_PROMPTS
    if options.prompts:
        prompts, records = read_records(options.prompts, limit=options.limit, columns=columns)
        judge = judge and partial(judge, columns=records)
    return Check(
        prompts=prompts,
        max_new_tokens=options.max_new_tokens,
        judge=judge,
        tolerance=Tolerance(
            kl=options.tolerance_kl,
            rounded=options.tolerance_rounded,
            score=options.tolerance_score,
            perplexity=options.tolerance_perplexity,
            reward=options.tolerance_reward,
        ),
    )


def _show(out: str, report: dict[str, Any]) -> None:
    size = sum(report["files"].values())
    kind = report["quantize"] if report["quantize"] != "none" else report["dtype"]
    print(f"wrote {out}: {report['format']}, {kind}, {len(report['files'])} weight files, {size:,} bytes")
    found = report["verification"]
    if found is None:
        print("not compared with the source; --verify does that")
        return
    print(f"read by {found['read_by']}, {found['prompts']} prompts, {found['tokens']} positions")
    for name, value in found.items():
        if name not in ("read_by", "prompts", "tokens"):
            shown = value if isinstance(value, str) else f"{value:.6g}"
            print(f"  {name.replace('_', ' '):<20} {shown}")
