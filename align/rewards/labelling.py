"""Preference pairs, or the best response, from the scored responses to a prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple


class ScoredResponse(NamedTuple):
    """A response with the judge's score.

    Attributes:
        text: decoded, without special tokens.
        tokens: number of sampled tokens, the stop token included.
        finished: ended with a stop token, not truncated at the length limit.
        score: the judge's, in its own unit; higher is better.
        parts: name -> score of each part of a judge that is a ``WeightedSum``, without its weight.
    """

    text: str
    tokens: int
    finished: bool
    score: float
    parts: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class LabelConfig:
    """Which responses form pairs, and how noisy the labels are.

    Raises:
        ValueError: a setting is invalid.
    """

    label_temperature: float = 0.0
    """Temperature of the Bradley-Terry coin, in units of the judge's score; 0: the higher score is always chosen"""
    flip_rate: float = 0.0
    """Probability that a noiseless label is flipped, below 0.5; other than a coin it leaves ties out"""
    pairs_per_prompt: int = 6
    """Maximum number of pairs per prompt"""
    keep_unfinished: bool = False
    """Use truncated responses too"""
    least_score: float | None = None
    """Smallest score of a best response, in the judge's unit; prompts without one are skipped; null: no limit"""
    seed: int = 0
    """Seed of the choice among pairs and of the coin"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not 0 <= self.label_temperature < math.inf:
            raise ValueError(f"label_temperature is {self.label_temperature}; it must be 0 (noiseless) or above")
        if not 0 <= self.flip_rate < 0.5:
            raise ValueError(f"flip_rate is {self.flip_rate}; it must be in [0, 0.5)")
        if self.flip_rate and self.label_temperature:
            raise ValueError(
                f"flip_rate is {self.flip_rate} and label_temperature {self.label_temperature}; set one of the "
                "two kinds of noise"
            )
        if self.pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt is {self.pairs_per_prompt}; it must be at least 1")


@dataclass
class Tally:
    """Counts of prompts and responses, and sums over them."""

    prompts: int = 0
    """Prompts read"""
    prompts_too_long: int = 0
    """Prompts that leave no room for a response; skipped"""
    prompts_all_equal: int = 0
    """Prompts whose usable responses are all the same; skipped for pairs"""
    prompts_too_few: int = 0
    """Prompts with fewer usable responses than needed, two for pairs and one for the best; skipped"""
    prompts_too_low: int = 0
    """Prompts whose best response scores below ``least_score``; skipped"""
    responses: int = 0
    """Responses sampled"""
    responses_unfinished: int = 0
    """Truncated responses"""
    responses_empty: int = 0
    """Empty responses; never used"""
    responses_identical: int = 0
    """Usable responses that repeat an earlier one to the same prompt; never compared with it"""
    ties: int = 0
    """Pairs of equal score: a fair coin labels them, or at label_temperature 0 they are left out"""
    untied: int = 0
    """Written pairs of unequal score"""
    agreeing: int = 0
    """Of these, pairs whose label agrees with the judge"""
    records: int = 0
    """Records written"""
    score_sum: float = 0.0
    """Over all responses"""
    part_sums: dict[str, float] = field(default_factory=dict)
    """The same of each part of a weighted sum"""
    kept_score_sum: float = 0.0
    """Over chosen responses, or the best ones"""
    rejected_score_sum: float = 0.0
    """Over rejected responses"""
    kept_tokens: int = 0
    """Over chosen responses, or the best ones"""
    rejected_tokens: int = 0
    """Over rejected responses"""

    def summary(self, *, best_of: bool) -> dict[str, Any]:
        """Counts, shares and means, ready for JSON."""
        sums = {"score_sum", "part_sums", "kept_score_sum", "rejected_score_sum", "kept_tokens", "rejected_tokens"}
        pairs_only, best_only = (
            {"ties", "untied", "agreeing", "prompts_all_equal", "responses_identical"},
            {"prompts_too_low"},
        )
        left_out = sums | (pairs_only if best_of else best_only)
        counts = {name: value for name, value in asdict(self).items() if name not in left_out}
        kept = "best" if best_of else "chosen"
        means = {
            "responses": _mean(self.score_sum, self.responses),
            kept: _mean(self.kept_score_sum, self.records),
            **{f"responses/{name}": _mean(total, self.responses) for name, total in self.part_sums.items()},
        }
        tokens = {kept: _mean(self.kept_tokens, self.records)}
        if best_of:
            return {"counts": counts, "mean_score": means, "mean_tokens": tokens}
        means["rejected"] = _mean(self.rejected_score_sum, self.records)
        tokens["rejected"] = _mean(self.rejected_tokens, self.records)
        agreement = _mean(self.agreeing, self.untied)
        return {"counts": counts, "label_agreement": agreement, "mean_score": means, "mean_tokens": tokens}


def label_pairs(
    number: int, responses: Sequence[ScoredResponse], config: LabelConfig, tally: Tally
) -> list[tuple[ScoredResponse, ScoredResponse]]:
    """Pairs of (chosen, rejected) among the responses to a prompt.

    1. leave out responses that are empty, truncated (unless kept) or repeat an earlier one;
    2. form all pairs of the others, without ties if labels are noiseless;
    3. shuffle, and take the first ``pairs_per_prompt``;
    4. a coin labels each: P(first chosen) = sigmoid((s1 - s2) / temperature) (Bradley & Terry 1952); or the higher
       score is chosen, with probability ``flip_rate`` the lower one.

    All randomness depends on the seed and the prompt's number alone.

    Args:
        number: of the prompt in its file.
        responses: to the prompt.
        config: the settings.
        tally: updated in place.

    Returns:
        list: possibly empty.
    """
    tally.prompts += 1
    if not responses:
        tally.prompts_too_long += 1
        return []
    usable = _usable(responses, config, tally)
    distinct = list({response.text: response for response in reversed(usable)}.values())[::-1]
    tally.responses_identical += len(usable) - len(distinct)
    if len(distinct) < 2:
        tally.prompts_all_equal += len(usable) > 1
        tally.prompts_too_few += len(usable) <= 1
        return []
    rng = Random(f"{config.seed}/pairs/{number}")
    pairs = list(combinations(distinct, 2))
    if config.label_temperature == 0:
        tally.ties += sum(first.score == second.score for first, second in pairs)
        pairs = [(first, second) for first, second in pairs if first.score != second.score]
    rng.shuffle(pairs)
    labelled = [_label(rng, first, second, config) for first, second in pairs]
    labelled = labelled[: config.pairs_per_prompt]
    for chosen, rejected in labelled:
        tied = chosen.score == rejected.score
        tally.ties += tied
        tally.untied += not tied
        tally.agreeing += chosen.score > rejected.score
        tally.rejected_score_sum += rejected.score
        tally.rejected_tokens += rejected.tokens
        _count_kept(chosen, tally)
    return labelled


def best_response(responses: Sequence[ScoredResponse], config: LabelConfig, tally: Tally) -> ScoredResponse | None:
    """The response with the highest score, the first one on a tie; None if none is usable and scores enough."""
    tally.prompts += 1
    if not responses:
        tally.prompts_too_long += 1
        return None
    usable = _usable(responses, config, tally)
    if not usable:
        tally.prompts_too_few += 1
        return None
    best = max(usable, key=lambda response: response.score)
    if config.least_score is not None and best.score < config.least_score:
        tally.prompts_too_low += 1
        return None
    _count_kept(best, tally)
    return best


def _usable(responses: Sequence[ScoredResponse], config: LabelConfig, tally: Tally) -> list[ScoredResponse]:
    tally.responses += len(responses)
    tally.score_sum += math.fsum(response.score for response in responses)
    for name in responses[0].parts:
        total = math.fsum(response.parts[name] for response in responses)
        tally.part_sums[name] = tally.part_sums.get(name, 0.0) + total
    tally.responses_unfinished += sum(not response.finished for response in responses)
    # The data modules refuse an empty assistant turn.
    tally.responses_empty += sum(not response.text.strip() for response in responses)
    return [
        response for response in responses if response.text.strip() and (response.finished or config.keep_unfinished)
    ]


def _label(
    rng: Random, first: ScoredResponse, second: ScoredResponse, config: LabelConfig
) -> tuple[ScoredResponse, ScoredResponse]:
    gap, temperature = first.score - second.score, config.label_temperature
    if temperature == 0:
        flipped = config.flip_rate > 0 and rng.random() < config.flip_rate
        return (first, second) if (gap > 0) != flipped else (second, first)
    return (first, second) if rng.random() < 0.5 * (1 + math.tanh(gap / temperature / 2)) else (second, first)


def _count_kept(response: ScoredResponse, tally: Tally) -> None:
    tally.records += 1
    tally.kept_score_sum += response.score
    tally.kept_tokens += response.tokens


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 6) if count else None
