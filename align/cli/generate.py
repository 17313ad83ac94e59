"""``align generate``: sample from a model directory, and score the samples."""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.cli.device import DeviceSettings, network_device
from align.cli.model_path import model_directory
from align.cli.prompt_file import read_records, require_columns
from align.cli.settings import parse_settings, require_at_least, setting
from align.generation.sampling_config import SamplingConfig
from align.tokenizer.prompts import Columns, Prompt, answers_chats, as_text, encode_prompt

if TYPE_CHECKING:
    import torch

    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Sample from a model directory, a Hugging Face directory, a GGUF file or a Hub id, and score the samples.

    Raises:
        ValueError: a setting is invalid, or two contradict each other.
    """

    model: str = setting(positional=True)
    """Model directory, folder of a stage, Hugging Face directory, GGUF file or Hub id"""
    prompt: str | None = None
    """What a chat model responds to, or what another model continues"""
    prompts: str | None = None
    """JSONL file of {'prompt': text or messages}, or a file or Hub data set in another prompt format, instead of
    --prompt"""
    prompt_format: str | None = None
    """Format of --prompts, such as TLDR (docs/data.md); null: detected"""
    limit: int | None = None
    """Number of prompts to read from --prompts; null: all"""
    system: str | None = None
    """System message of prompts that have none, for a chat model"""
    raw: bool = False
    """Continue the text as it is, without the chat template"""
    n: int = 1
    """Samples per prompt"""
    seed: int = 0
    """Hashed with the indices of prompt and sample to seed each sample"""
    batch_size: int = 64
    """Sequences sampled at a time"""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    judge: str | None = None
    """Reward that scores the samples: sandbox, constraints, constraints_strict, exact_answer, module:function (prompts,
    responses) -> scores, the class path of a Reward, or the directory of a reward model"""
    out: str | None = None
    """JSONL file to which the samples are also written"""
    show: int = 8
    """Number of samples to print (without --json)"""
    stream: Literal["auto", "yes", "no"] = "auto"
    """Print the single sample of a single --prompt token by token; auto: if it goes to a terminal"""
    json: bool = False
    """Print one JSON object per sample: prompt, text, tokens, finished (and reward)"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give one of --prompt TEXT and --prompts FILE")
        require_at_least(self, n=1, batch_size=1, limit=1, show=0)
        if self.stream == "yes" and not self.streamable:
            raise ValueError("--stream yes goes with one --prompt and --n 1, without --judge and --json")

    @property
    def streamable(self) -> bool:
        """Whether there is a single sample, and nothing to do with it but print it."""
        return self.prompt is not None and self.n == 1 and not self.judge and not self.json


def main(args: list[str]) -> int:
    """Sample from a model directory.

    Args:
        args: the command line after ``align generate``.

    Returns:
        int: 0.
    """
    options = parse_settings(GenerateSettings, "generate", args)
    directory = model_directory(options.model)
    streamed = options.streamable and (options.stream == "yes" or (options.stream == "auto" and sys.stdout.isatty()))
    device = network_device(options.device.device)
    if streamed:
        samples = [_stream(options, directory, device)]
    else:
        samples = list(_with_progress(_sample(options, directory, device), sys.stderr))
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.json:
        print("\n".join(lines))
    elif not streamed:
        _show(samples, options)
    return 0


def _sample(options: GenerateSettings, directory: Path, device: "torch.device") -> Iterator[list[dict[str, Any]]]:
    """Samples, one batch at a time."""
    from align.generation.responses import sample_responses
    from align.generation.sampling import response_seed
    from align.rewards.functions import load_reward

    judge = load_reward(options.judge, device=device) if options.judge else None
    read: Sequence[str] = ()
    if judge:
        require_columns(judge, options.prompts)
        read = judge.columns
    if options.prompt is not None:
        prompts: list[Prompt] = [options.prompt]
        columns: list[Columns] = [{}]
    else:
        file, limit = str(options.prompts), options.limit
        prompts, columns = read_records(file, limit=limit, format=options.prompt_format, columns=read)
    network, tokenizer, chat = _load(directory, device, raw=options.raw)
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(options.n)]
    for start in range(0, len(rows), options.batch_size):
        batch = rows[start : start + options.batch_size]
        asked = [prompts[number] for number, _ in batch]
        ids = [encode_prompt(tokenizer, prompt, chat=chat, system=options.system) for prompt in asked]
        seeds = [response_seed(options.seed, number, sample) for number, sample in batch]
        sampled = sample_responses(network, tokenizer, ids, options.sampling, seeds=seeds)
        scores = judge(asked, sampled.texts, [columns[number] for number, _ in batch]) if judge else ()
        rewards = [{"reward": score} for score in scores] or [{}] * len(batch)
        yield [
            {"prompt": as_text(prompt), **record, **reward}
            for prompt, record, reward in zip(asked, sampled.records(), rewards, strict=True)
        ]


def _load(directory: Path, device: "torch.device", *, raw: bool) -> "tuple[GPT, Tokenizer, bool]":
    """The network, its tokenizer, and whether prompts are rendered with the chat template."""
    from align.io.directory import load_network
    from align.io.manifest import stage_of
    from align.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    network = load_network(directory).eval().to(device)
    return network, tokenizer, not raw and answers_chats(tokenizer, stage_of(directory))


def _stream(options: GenerateSettings, directory: Path, device: "torch.device") -> dict[str, Any]:
    """One sample, printed token by token."""
    from align.generation.responses import sample_responses
    from align.generation.sampling import response_seed

    assert options.prompt is not None
    network, tokenizer, chat = _load(directory, device, raw=options.raw)
    ids = encode_prompt(tokenizer, options.prompt, chat=chat, system=options.system)
    decoder = tokenizer.stream_decoder()

    def show(row: int, token: int) -> None:
        print(decoder.push(token), end="", flush=True)

    print(f"> {options.prompt}", end="" if options.raw else "\n", flush=True)
    seeds = [response_seed(options.seed, 0, 0)]
    sampled = sample_responses(network, tokenizer, [ids], options.sampling, seeds=seeds, on_token=show)
    print(decoder.flush() + ("" if sampled.finished[0] else " ...") + "\n")
    return {"prompt": options.prompt, **sampled.records()[0]}


def _with_progress(batches: Iterable[Sequence[dict[str, Any]]], stream: Any) -> Iterator[dict[str, Any]]:
    done = 0
    for batch in batches:
        yield from batch
        done += len(batch)
        if stream.isatty():
            print(f"\r{done} samples", end="", file=stream, flush=True)
    if stream.isatty():
        print("\r", end="", file=stream)


def _show(samples: Sequence[dict[str, Any]], options: GenerateSettings) -> None:
    judge = options.judge
    for sample in samples[: options.show]:
        tail = f"  [{judge} reward {sample['reward']:.2f}]" if judge else ""
        gap = "" if options.raw else "\n"
        print(f"> {sample['prompt']}{gap}{sample['text']}{'' if sample['finished'] else ' ...'}{tail}\n")
    if len(samples) > 1:
        length = statistics.mean(sample["tokens"] for sample in samples)
        ended = statistics.mean(sample["finished"] for sample in samples)
        print(f"{len(samples)} samples, {length:.1f} tokens on average, {ended:.0%} ended with a stop token")
    if judge and len(samples) > 1:
        rewards = [sample["reward"] for sample in samples]
        error = statistics.stdev(rewards) / len(rewards) ** 0.5
        print(
            f"{judge} reward: mean {statistics.mean(rewards):.3f} +- {1.96 * error:.3f} (95%, {len(rewards)} samples)"
        )
