"""``align generate``: sample from a model directory, and score the samples."""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from align.cli.device import DeviceSettings, network_device
from align.cli.engine import EngineFlag
from align.cli.errors import UsageError
from align.cli.model_path import model_directory
from align.cli.origin import judge_facts, model_facts
from align.cli.prompt_file import read_records, require_columns
from align.cli.sampling import SamplingFlags
from align.cli.settings import parse_settings, require_at_least, setting
from align.io.atomic import replacing_file
from align.io.log import Log, differences, key_of
from align.tokenizer.prompts import Columns, Prompt, answers_chats, as_text, encode_prompt

if TYPE_CHECKING:
    import torch

    from align.generation.sampling_config import SamplingConfig
    from align.model.gpt import GPT
    from align.rewards.reward import Reward
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
    sampling: SamplingFlags = SamplingFlags()
    """How tokens are drawn"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    engine: EngineFlag = EngineFlag()
    """What samples"""
    judge: str | None = None
    """Reward that scores the samples: sandbox, constraints, constraints_strict, exact_answer, module:function (prompts,
    responses) -> scores, the class path of a Reward, {class_path: CLASS, init_args: {NAME: VALUE}} of one with
    settings, or the directory of a reward model"""
    out: str | None = None
    """JSONL file to which the samples are also written; an interrupted run resumes after its last complete batch"""
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
            raise ValueError("--stream yes goes with one --prompt and --n 1, without --judge, --json and --engine")

    @property
    def streamable(self) -> bool:
        """Whether there is a single sample, and nothing to do with it but print it."""
        alone = self.prompt is not None and self.n == 1
        return alone and not self.judge and not self.json and self.engine.engine is None


class _Asked(NamedTuple):
    """What is sampled and scored.

    Attributes:
        prompts: texts or messages.
        columns: of their records, those that the judge reads.
        judge: scores the samples; None: nothing does.
    """

    prompts: Sequence[Prompt]
    columns: Sequence[Columns]
    judge: "Reward | None"


def main(args: list[str]) -> int:
    """Sample from a model directory.

    Args:
        args: the command line after ``align generate``.

    Returns:
        int: 0.
    """
    options = parse_settings(GenerateSettings, "generate", args)
    if options.out and Path(options.out).is_dir():
        raise UsageError(f"--out {options.out} is a folder; name a file")
    directory = model_directory(options.model)
    streamed = options.streamable and (options.stream == "yes" or (options.stream == "auto" and sys.stdout.isatty()))
    device = network_device(options.device.device)
    sampling, note = options.sampling.resolve(directory)
    if note:
        print(note, file=sys.stderr, flush=True)
    if streamed:
        samples = [_stream(options, sampling, directory, device)]
    else:
        samples = _sample(options, sampling, directory, device)
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    if options.out:
        with replacing_file(Path(options.out)) as file:
            file.writelines(f"{line}\n" for line in lines)
        _log_file(options.out).unlink(missing_ok=True)
    if options.json:
        print("\n".join(lines))
    elif not streamed:
        _show(samples, options)
    return 0


def _log_file(out: str) -> Path:
    """The log that survives a kill."""
    return Path(out).with_name(f".{Path(out).name}.partial")


def _sample(
    options: GenerateSettings, sampling: "SamplingConfig", directory: Path, device: "torch.device"
) -> list[dict[str, Any]]:
    """All samples; those of an interrupted run with the same ``--out`` from its log."""
    asked = _read(options, device)
    first: list[dict[str, Any]] = []
    log = None
    if options.out:
        log = _log(_log_file(options.out), _origin(options, sampling, directory, device, asked))
        first = list(log)
    samples = []
    for batch in _with_progress(_batches(options, sampling, directory, device, asked, len(first)), len(first)):
        if log is not None:
            log.append(batch)
        samples += batch
    return first + samples


def _read(options: GenerateSettings, device: "torch.device") -> _Asked:
    from align.rewards.functions import load_reward

    judge = load_reward(options.judge, device=device) if options.judge else None
    read: Sequence[str] = ()
    if judge:
        require_columns(judge, options.prompts)
        read = judge.columns
    if options.prompt is not None:
        return _Asked([options.prompt], [{}], judge)
    file, limit = str(options.prompts), options.limit
    prompts, columns = read_records(file, limit=limit, format=options.prompt_format, columns=read)
    return _Asked(prompts, columns, judge)


def _log(file: Path, origin: dict[str, Any]) -> Log:
    """The log of an interrupted run, or a new one.

    Raises:
        ValueError: it has rows that depend on other settings.
    """
    if changes := differences(file, origin):
        raise ValueError(
            f"{file} has rows of an interrupted run, which can't be continued with other settings: "
            f"{changes}; set them as before, or delete the file"
        )
    log = Log(file, origin=origin)
    if log:
        print(f"resuming after the {len(log)} samples in {file}", file=sys.stderr)
    return log


def _origin(
    options: GenerateSettings, sampling: "SamplingConfig", directory: Path, device: "torch.device", asked: _Asked
) -> dict[str, Any]:
    """Everything that samples and scores depend on."""
    # Logits depend, by rounding, on the shape of the batch and on the device.
    names = ("n", "seed", "batch_size", "system", "raw")
    return {
        "model": model_facts(directory),
        "judge": options.judge and judge_facts(options.judge),
        "prompts": key_of(list(asked.prompts), list(asked.columns)),
        "device": device.type,
        **options.engine.load().identity,
        **asdict(sampling),
        **{name: getattr(options, name) for name in names},
    }


def _batches(
    options: GenerateSettings,
    sampling: "SamplingConfig",
    directory: Path,
    device: "torch.device",
    asked: _Asked,
    first: int,
) -> Iterator[list[dict[str, Any]]]:
    """Batches of samples, from number ``first``, with which a batch begins."""
    from align.engines import Asked, Weights
    from align.generation.sampling import response_seed

    rows = [(number, sample) for number in range(len(asked.prompts)) for sample in range(options.n)]
    if first == len(rows):
        return
    network, tokenizer, chat = _load(directory, device, raw=options.raw)
    with options.engine.load().open(tokenizer) as engine:
        for start in range(first, len(rows), options.batch_size):
            batch = rows[start : start + options.batch_size]
            prompts = [asked.prompts[number] for number, _ in batch]
            columns = [asked.columns[number] for number, _ in batch]
            ids = [encode_prompt(tokenizer, prompt, chat=chat, system=options.system) for prompt in prompts]
            seeds = [response_seed(options.seed, number, sample) for number, sample in batch]
            sampled = engine.sample(Weights(network, ""), Asked(ids, sampling, seeds))
            scores = asked.judge(prompts, sampled.texts, columns) if asked.judge else ()
            rewards = [{"reward": score} for score in scores] or [{}] * len(batch)
            yield [
                {"prompt": as_text(prompt), **record, **reward}
                for prompt, record, reward in zip(prompts, sampled.records(), rewards, strict=True)
            ]


def _load(directory: Path, device: "torch.device", *, raw: bool) -> "tuple[GPT, Tokenizer, bool]":
    """The network, its tokenizer, and whether prompts are rendered with the chat template."""
    from align.io.directory import load_network
    from align.io.manifest import stage_of
    from align.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    network = load_network(directory).eval().to(device)
    return network, tokenizer, not raw and answers_chats(tokenizer, stage_of(directory))


def _stream(
    options: GenerateSettings, sampling: "SamplingConfig", directory: Path, device: "torch.device"
) -> dict[str, Any]:
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
    sampled = sample_responses(network, tokenizer, [ids], sampling, seeds=seeds, on_token=show)
    print(decoder.flush() + ("" if sampled.finished[0] else " ...") + "\n")
    return {"prompt": options.prompt, **sampled.records()[0]}


def _with_progress(batches: Iterable[list[dict[str, Any]]], done: int) -> Iterator[list[dict[str, Any]]]:
    stream = sys.stderr
    for batch in batches:
        yield batch
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
