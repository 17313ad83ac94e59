"""Responses to prompts, scored by a reward: constraints, exact answers, unit tests, any judge."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from align.evaluate.result import Measure, Result
from align.evaluate.task import EvalTask, Subject
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.generation.stop_texts import StopTexts
from align.io.log import Log, key_of
from align.io.progress import progress_bar
from align.rewards.reward import Reward
from align.rewards.weighted_sum import scores_of
from align.tokenizer.prompts import Columns, Prompt, as_text, encode_prompt


@dataclass(frozen=True)
class Scored(EvalTask):
    """Mean score of responses to prompts.

    Raises:
        ValueError: there are no prompts, or not as many records of columns.
    """

    prompts: Sequence[Prompt]
    """Texts or messages"""
    columns: Sequence[Columns]
    """Of the prompts' records: those that the reward reads"""
    reward: Reward
    """Scores the responses"""
    n: int = 1
    """Responses to each prompt"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)  # noqa: RUF009 (frozen)
    """How they are sampled"""

    def __post_init__(self) -> None:
        """Reject prompts and records that don't pair up."""
        if not self.prompts or len(self.prompts) != len(self.columns):
            raise ValueError(f"{len(self.prompts)} prompts and {len(self.columns)} records of columns; give one each")

    @property
    def name(self) -> str:
        """That of the reward."""
        return self.reward.name

    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """See ``EvalTask``."""
        prompts = list(self.prompts[:limit])
        rows = sampled_texts(subject, prompts, n=self.n, sampling=self.sampling)
        asked = [prompt for prompt in prompts for _ in range(self.n)]
        columns = [record for record in self.columns[:limit] for _ in range(self.n)]
        scores, parts = scores_of(self.reward, asked, [text for row in rows for text, _ in row], columns)
        table = np.array(scores).reshape(len(prompts), self.n)
        items = [
            {"doc_id": number, "prompt": as_text(prompt), "resps": [text for text, _ in row], "scores": found.tolist()}
            for number, (prompt, row, found) in enumerate(zip(prompts, rows, table, strict=True))
        ]
        ended = np.array([[finished for _, finished in row] for row in rows], float)
        measures = [
            Measure.of_items("score,none", table.mean(1), higher_is_better=True),
            Measure.of_items("finished,none", ended.mean(1), higher_is_better=None),
        ]
        for name, values in parts.items():
            of_part = np.array(values).reshape(len(prompts), self.n).mean(1)
            measures.append(Measure.of_items(f"score,{name}", of_part, higher_is_better=None))
        return Result(self.name, measures, items, {"n": self.n, **asdict(self.sampling)})


def sampled_texts(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    n: int,
    sampling: SamplingConfig,
    raw: bool = False,
    stops: Sequence[str] = (),
) -> list[list[tuple[str, bool]]]:
    """Responses to prompts, logged: ``n`` rows of text and whether it ended with a stop token for each prompt.

    Args:
        subject: the model.
        prompts: texts or messages.
        n: responses to each.
        sampling: how they are sampled.
        raw: continue texts instead of answering with the chat template.
        stops: texts that end a response, besides stop tokens; they are part of it.

    Raises:
        ValueError: a prompt leaves no room for a response.
    """
    chat = subject.is_chat and not raw
    facts = [subject.fingerprint, subject.tokenizer.fingerprint, chat, list(prompts), n, asdict(sampling), subject.seed]
    facts.append(list(stops))
    log = Log(subject.folder / f"responses-{key_of(*facts, torch.device(subject.device).type)}.jsonl")
    group = max(1, subject.batch_size // n)
    with progress_bar("responses", len(prompts)) as advance:
        advance(len(log))
        while (start := len(log)) < len(prompts):
            batch = prompts[start : start + group]
            ids = [encode_prompt(subject.tokenizer, prompt, chat=chat) for prompt in batch]
            seeds = [response_seed(subject.seed, start + row, k) for row in range(len(batch)) for k in range(n)]
            rows = [one for one in ids for _ in range(n)]
            ends = StopTexts(subject.tokenizer, stops, rows=len(rows)) if stops else None
            sampled = sample_responses(subject.network, subject.tokenizer, rows, sampling, seeds=seeds, on_token=ends)
            found = list(zip(sampled.texts, sampled.finished, strict=True))
            log.append([found[row * n : (row + 1) * n] for row in range(len(batch))])
            advance(len(batch))
    return [[(text, finished) for text, finished in row] for row in log]
