"""What a reward is, and what is demanded of the scores of one that somebody else wrote."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from align.tokenizer.prompts import Prompt, as_text

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses) -> one score each; higher is better."""

_SHOWN = 60
"""Characters of an offending text that an error shows"""


class Reward(Protocol):
    """Scores responses to prompts; higher is better."""

    name: str
    """As ``load_reward`` was asked for it"""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response.

        Args:
            prompts: what was asked.
            responses: as many answers.

        Returns:
            list[float]: as many finite numbers.

        Raises:
            ValueError: the counts differ, or the reward failed; the line names the reward and the offender.
        """
        ...


class FunctionReward:
    """A Python function of texts as a reward whose answers are checked.

    Args:
        name: what errors call it.
        function: (prompts, responses) -> scores; of messages it gets the text of the last one.
    """

    def __init__(self, name: str, function: RewardFunction) -> None:
        """Keep both."""
        self.name, self.function = name, function

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        check_counts(self.name, prompts, responses)
        if not responses:
            return []
        asked, answered = [as_text(prompt) for prompt in prompts], list(responses)
        try:
            scores = self.function(asked, answered)
        except Exception as error:
            raise self._raised(error, asked, answered) from error
        return checked_scores(self.name, scores, answered)

    def _raised(self, error: Exception, prompts: list[str], responses: list[str]) -> ValueError:
        """What to say of a function that raised; it is asked again, one by one, to find the offender."""
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                self.function([prompt], [response])
            except Exception as alone:
                place = f"response {index} of {len(responses)} ({shown(response)}), prompt {shown(prompt)}"
                return ValueError(f"reward {self.name!r} raised {_told(alone)} on {place}")
        return ValueError(f"reward {self.name!r} raised {_told(error)} on {len(responses)} responses, on none alone")


def checked_scores(name: str, scores: Any, responses: Sequence[str]) -> list[float]:
    """Scores as floats, if they are as many as responses and all finite.

    Args:
        name: of the reward.
        scores: what it gave: a sequence of numbers, an array or a tensor.
        responses: what it scored.

    Raises:
        ValueError: they are no numbers, another number of them, or one is NaN or infinite.
    """
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward {name!r} gave {shown(scores)} for {len(responses)} responses, not one number each: {error}"
        ) from None
    if len(values) != len(responses):
        raise ValueError(f"reward {name!r} gave {len(values)} scores for {len(responses)} responses")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(
                f"reward {name!r} gave {value} for response {index} of {len(responses)} ({shown(responses[index])}); "
                "it must be a finite number"
            )
    return values


def check_counts(name: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
    """Refuse prompts and responses that don't pair up.

    Raises:
        ValueError: there are more of one than of the other.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"reward {name!r} was given {len(prompts)} prompts and {len(responses)} responses")


def shown(value: Any) -> str:
    """The start of a value, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
