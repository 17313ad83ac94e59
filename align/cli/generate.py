"""``align generate``: sample from a model directory, and score the samples."""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from align.cli.device import add_device_argument, network_device
from align.cli.errors import UsageError
from align.cli.model_path import model_directory
from align.cli.parsing import make_parser, parse
from align.cli.sampling import add_sampling_arguments, read_prompts, sampling_config
from align.tokenizer.prompts import answers_chats, as_text, encode_prompt

if TYPE_CHECKING:
    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer


def main(args: list[str]) -> int:
    """Sample from a model directory.

    Args:
        args: the command line after ``align generate``.

    Returns:
        int: 0.
    """
    options = parse(_parser(), args)
    if (options.prompt is None) == (options.prompts is None):
        raise UsageError("give one of --prompt TEXT and --prompts FILE")
    if options.n < 1 or options.batch_size < 1:
        raise UsageError(f"--n is {options.n} and --batch_size {options.batch_size}: both must be at least 1")
    options.model = str(model_directory(options.model))
    streamed = _streamed(options, sys.stdout.isatty())
    options.device = network_device(options.device)
    samples = [_stream(options)] if streamed else list(_with_progress(_sample(options), sys.stderr))
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.json:
        print("\n".join(lines))
    elif not streamed:
        _show(samples, options)
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser("generate", "Sample from a model directory, a Hugging Face directory or a Hub id.")
    parser.add_argument("model", help="model directory, a stage's folder, Hugging Face directory or Hub id")
    parser.add_argument("--prompt", help="what to answer (chat models) or to continue (others)")
    parser.add_argument("--prompts", help="JSONL file of {'prompt': text or messages}, instead of --prompt")
    parser.add_argument("--limit", type=int, help="read only this many prompts of --prompts (default: all)")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--n", type=int, default=1, help="samples per prompt")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="hashed with the numbers of prompt and sample",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="sequences sampled at once")
    add_sampling_arguments(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--judge",
        help="score the samples: sandbox, module:function (prompts, responses) -> scores, or the directory of a reward "
        "model",
    )
    parser.add_argument("--out", help="also write the samples to this JSONL file")
    parser.add_argument("--show", type=int, default=8, help="how many samples to print (without --json)")
    parser.add_argument(
        "--stream", choices=["auto", "yes", "no"], default="auto",
        help="print one sample of one --prompt as it comes; auto: where that is asked for on a terminal",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a sample: prompt, text, tokens, finished (and reward)"
    )
    return parser


def _sample(options: jsonargparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Samples, one batch at a time."""
    from align.generation.responses import sample_responses
    from align.generation.sampling import response_seed
    from align.rewards.functions import load_reward

    judge = load_reward(options.judge, device=options.device) if options.judge else None
    sampling = sampling_config(options)
    prompts = [options.prompt] if options.prompt is not None else read_prompts(options.prompts, limit=options.limit)
    network, tokenizer, chat = _load(options)
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(options.n)]
    for start in range(0, len(rows), options.batch_size):
        batch = rows[start : start + options.batch_size]
        asked = [prompts[number] for number, _ in batch]
        ids = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in asked]
        seeds = [response_seed(options.seed, number, sample) for number, sample in batch]
        sampled = sample_responses(network, tokenizer, ids, sampling, seeds=seeds)
        rewards = [{"reward": reward} for reward in judge(asked, sampled.texts)] if judge else [{}] * len(batch)
        yield [
            {"prompt": as_text(prompt), **record, **reward}
            for prompt, record, reward in zip(asked, sampled.records(), rewards, strict=True)
        ]


def _load(options: jsonargparse.Namespace) -> "tuple[GPT, Tokenizer, bool]":
    """The network, its tokenizer, and whether prompts are a chat's."""
    from align.io.directory import load_network
    from align.io.manifest import stage_of
    from align.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.model)
    network = load_network(options.model).eval().to(options.device)
    chat = not options.raw and answers_chats(tokenizer, stage_of(options.model))
    return network, tokenizer, chat


def _streamed(options: jsonargparse.Namespace, terminal: bool) -> bool:
    """Whether the sample is printed as it comes."""
    possible = options.prompt is not None and options.n == 1 and not options.judge and not options.json
    if options.stream == "yes" and not possible:
        raise UsageError("--stream yes goes with one --prompt and --n 1, without --judge and --json")
    return possible and (options.stream == "yes" or (options.stream == "auto" and terminal))


def _stream(options: jsonargparse.Namespace) -> dict[str, Any]:
    """One sample, printed as it comes."""
    from align.generation.responses import sample_responses
    from align.generation.sampling import response_seed

    network, tokenizer, chat = _load(options)
    ids = encode_prompt(tokenizer, options.prompt, chat=chat)
    decoder = tokenizer.stream_decoder()

    def show(row: int, token: int) -> None:
        print(decoder.push(token), end="", flush=True)

    print(f"> {options.prompt}", end="" if options.raw else "\n", flush=True)
    seeds = [response_seed(options.seed, 0, 0)]
    sampled = sample_responses(network, tokenizer, [ids], sampling_config(options), seeds=seeds, on_token=show)
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


def _show(samples: Sequence[dict[str, Any]], options: jsonargparse.Namespace) -> None:
    judge = options.judge
    for sample in samples[: options.show]:
        tail = f"  [{judge} reward {sample['reward']:.2f}]" if judge else ""
        gap = "" if options.raw else "\n"
        print(f"> {sample['prompt']}{gap}{sample['text']}{'' if sample['finished'] else ' ...'}{tail}\n")
    if len(samples) > 1:
        length = statistics.mean(sample["tokens"] for sample in samples)
        ended = statistics.mean(sample["finished"] for sample in samples)
        print(f"{len(samples)} samples, {length:.1f} tokens on average, {ended:.0%} ended by themselves")
    if judge and len(samples) > 1:
        rewards = [sample["reward"] for sample in samples]
        error = statistics.stdev(rewards) / len(rewards) ** 0.5
        print(
            f"{judge} reward: mean {statistics.mean(rewards):.3f} +- {1.96 * error:.3f} (95%, {len(rewards)} samples)"
        )
