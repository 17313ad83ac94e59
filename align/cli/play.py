"""``align play``: episodes of several turns between a model and an environment, with their transcripts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align.cli.device import DeviceSettings, network_device
from align.cli.engine import EngineFlag
from align.cli.errors import UsageError
from align.cli.model_path import model_directory
from align.cli.prompt_file import read_records
from align.cli.settings import parse_settings, require_at_least, setting
from align.environments import Environment
from align.io.atomic import replacing_file
from align.io.described import described
from align.io.progress import progress_bar
from align.tokenizer.prompts import as_text, encode_prompt

if TYPE_CHECKING:
    import torch

    from align.algorithms.rollout import Responses
    from align.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """Play episodes of several turns between a model and an environment, and say what they earned.

    Raises:
        ValueError: a setting is invalid.
    """

    model: str = setting(positional=True)
    """Model directory, folder of a stage, Hugging Face directory, GGUF file or Hub id of a chat model"""
    environment: str
    """What answers the model: TwentyQuestions, Calculator, the class path of an Environment, {class_path: CLASS,
    init_args: {NAME: VALUE}} of one with settings, or a YAML file with the same"""
    prompts: str
    """JSONL file of {'prompt': text or messages} with the columns that the environment reads, or a file or Hub data set
    in another prompt format"""
    limit: int | None = None
    """Number of prompts to read; null: all"""
    n: int = 1
    """Episodes per prompt"""
    seed: int = 0
    """Hashed with the numbers of prompt, episode and turn to seed each turn"""
    temperature: float = 1.0
    """Divides the logits; above 0"""
    max_new_tokens: int = 128
    """Longest turn, tokens"""
    batch_size: int = 64
    """Episodes played at a time"""
    device: DeviceSettings = DeviceSettings()
    """Device of the network"""
    engine: EngineFlag = EngineFlag()
    """What samples"""
    out: str | None = None
    """JSONL file to which the episodes are also written"""
    show: int = 2
    """Number of episodes to print (without --json)"""
    json: bool = False
    """Print one JSON object per episode: prompt, reward, turns, finished, transcript"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        require_at_least(self, n=1, limit=1, batch_size=1, show=0, max_new_tokens=1)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")


class Span(NamedTuple):
    """A part of a transcript.

    Attributes:
        by: model, whose tokens training counts, or environment.
        text: with the chat template's own tokens.
    """

    by: str
    text: str


def main(args: list[str]) -> int:
    """Play and show.

    Args:
        args: the command line after ``align play``.

    Returns:
        int: 0.
    """
    options = parse_settings(PlaySettings, "play", args)
    if options.out and Path(options.out).is_dir():
        raise UsageError(f"--out {options.out} is a folder; name a file")
    try:
        environment = described(
            options.environment,
            Environment,  # type: ignore[type-abstract]
            what="environment",
            example="TwentyQuestions",
        )
    except ValueError as error:
        raise UsageError(f"--environment: {error}") from error
    episodes = list(_episodes(options, environment, network_device(options.device.device)))
    lines = [json.dumps(episode, ensure_ascii=False) for episode in episodes]
    if options.out:
        with replacing_file(Path(options.out)) as file:
            file.writelines(f"{line}\n" for line in lines)
    if options.json:
        print("\n".join(lines))
    else:
        _show(episodes, options)
    return 0


def _episodes(options: PlaySettings, environment: Environment, device: "torch.device") -> Iterator[dict[str, Any]]:
    from align.algorithms.episodes import sample_episodes
    from align.algorithms.ppo_settings import RolloutConfig
    from align.algorithms.rollout import RolloutPrompt
    from align.io.directory import load_network
    from align.tokenizer import Tokenizer

    directory = model_directory(options.model)
    prompts, columns = read_records(options.prompts, limit=options.limit, columns=environment.columns)
    tokenizer, network = Tokenizer.load(directory), load_network(directory).eval().to(device)
    if tokenizer.spec.chat_template is None:
        raise UsageError(f"{options.model} has no chat template: an environment answers a chat model")
    asked = [
        RolloutPrompt(encode_prompt(tokenizer, prompt, chat=True), number, prompt, record)
        for number, (prompt, record) in enumerate(zip(prompts, columns, strict=True))
    ]
    for prompt in asked:
        if len(prompt.ids) >= network.config.context:
            raise ValueError(
                f"prompt {prompt.number + 1} has {len(prompt.ids)} tokens, and the context of {options.model} is "
                f"{network.config.context}: no room for a turn; leave the prompt out"
            )
    group = max(1, options.batch_size // options.n)
    bar = progress_bar("episodes", len(asked) * options.n)
    with options.engine.load().open(tokenizer) as engine, bar as advance:
        for start in range(0, len(asked), group):
            batch = asked[start : start + group]
            count = len(batch) * options.n
            played = sample_episodes(
                network,
                batch,
                environment,
                RolloutConfig(count, options.n, temperature=options.temperature, max_new_tokens=options.max_new_tokens),
                tokenizer=tokenizer,
                seed=options.seed,
                iteration=0,
                earlier=[0] * len(batch),
                engine=engine,
            )
            advance(count)
            yield from _records(played, tokenizer)


def _records(played: "Responses", tokenizer: "Tokenizer") -> Iterator[dict[str, Any]]:
    assert played.rewards is not None
    for number, (ids, mask) in enumerate(transcript_ids(played)):
        spans = transcript(ids, mask, tokenizer)
        yield {
            "prompt": as_text(played.prompts[number]),
            "reward": round(float(played.rewards[number].sum()), 6),
            "turns": sum(span.by == "model" for span in spans),
            "finished": bool(played.finished[number]),
            "transcript": [span._asdict() for span in spans],
        }


def transcript_ids(played: "Responses") -> Iterator[tuple[list[int], list[bool]]]:
    """Of each episode the ids after its prompt, and which of them training counts."""
    for row, mask, start, end in zip(
        played.ids.tolist(), played.mask.tolist(), played.prompt_lengths, played.lengths, strict=True
    ):
        yield row[start:end], mask[: end - start]


def transcript(ids: Sequence[int], mask: Sequence[bool], tokenizer: "Tokenizer") -> list[Span]:
    """An episode as spans of text, of the model and of its environment in turn.

    Args:
        ids: after the prompt.
        mask: for each id, whether the model sampled it, so that training counts it.
        tokenizer: of the ids.
    """
    spans, begin = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[begin]:
            text = tokenizer.decode(ids[begin:end], skip_special=False)
            spans.append(Span("model" if mask[begin] else "environment", text))
            begin = end
    return spans


def _show(episodes: Sequence[dict[str, Any]], options: PlaySettings) -> None:
    import numpy as np

    from align.evaluate.statistics import interval

    for episode in episodes[: options.show]:
        print(f"> {episode['prompt']}")
        for span in episode["transcript"]:
            mark = "[" if span["by"] == "model" else " "
            print("\n".join(f"  {mark} {line}" for line in span["text"].strip("\n").split("\n")))
        print(f"  reward {episode['reward']:g}\n")
    rewards = np.array([episode["reward"] for episode in episodes]).reshape(1, -1, options.n).mean(2)
    estimate = interval(rewards)
    turns = np.mean([episode["turns"] for episode in episodes])
    finished = np.mean([episode["finished"] for episode in episodes])
    print(
        f"{len(episodes)} episodes ([: the model's tokens, which training counts), {turns:.1f} turns on average, "
        f"{finished:.0%} finished"
    )
    print(
        f"reward: mean {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] (95%, {estimate.prompts} prompts)"
    )
