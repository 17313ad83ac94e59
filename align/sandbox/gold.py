"""The gold reward of a response, computed from properties that can be checked."""

import re
from typing import NamedTuple

from align.sandbox import words
from align.sandbox.phrasings import read_prompt
from align.sandbox.stories import Checked, check
from align.sandbox.world import Ingredients

_ASKED = ("who", "friend", "object", "place", "mood", "rule", "length", "ending")
# With equal weights two responses with equally many mistakes tie, instead of differing by less than can be learned.
WEIGHTS = dict.fromkeys(_ASKED, 0.08) | {"grammar": 0.08, "repetition": 0.03, "complete": 0.25}
_SHOWN = {word: mood for mood, shown in words.MOODS.items() for word in shown}


class GoldReward(NamedTuple):
    """The gold reward and its parts, each in [0, 1]; ``total`` is their mean under ``WEIGHTS``.

    Where less than half of the sentences are well formed, every part but ``grammar`` is scaled down in proportion
    (times ``2 * grammar``): a heap of ingredients earns nothing.

    Attributes:
        total: the weighted sum.
        who: half for the hero's name, half for the hero's kind.
        friend: the second character appears and no third one; without one asked for, none appears.
        object: the asked object is mentioned.
        place: the asked place is mentioned.
        mood: a word that shows the asked mood appears; half if another mood is shown too.
        rule: both asked events in the asked order, half in the wrong one; or the excluded object is not mentioned.
        length: the asked number of sentences, exactly.
        ending: the last sentence is one of the world's closings; shared among all closings when there are several.
        grammar: share of sentences that are well formed where they stand.
        repetition: share of distinct runs of four words.
        complete: 1 where every part above is 1.
    """

    total: float
    who: float
    friend: float
    object: float
    place: float
    mood: float
    rule: float
    length: float
    ending: float
    grammar: float
    repetition: float
    complete: float


def gold_reward(prompt: str, response: str) -> GoldReward:
    """Scores a response by what the prompt's own text asks for.

    Args:
        prompt: text that contains a prompt of this world; chat markup around it is ignored.
        response: any text.

    Returns:
        The reward and its parts; all 0 for an empty response.

    Raises:
        ValueError: the prompt is none of this world's.
    """
    asked = read_prompt(prompt)
    story = check(response)
    if not story.sentences:
        return GoldReward(*[0.0] * len(GoldReward._fields))
    told = re.findall(r"[a-z]+", " ".join(story.sentences).lower())
    parts = {
        "who": 0.5 * (story.hero[0] == asked.name) + 0.5 * (story.hero[1] == asked.kind),
        "friend": _friend(asked, story, told),
        "object": float(asked.object in told),
        "place": float(asked.place in told),
        "mood": _mood(asked, told),
        "rule": _rule(asked, told),
        "length": float(len(story.sentences) == asked.length),
        "ending": story.closings[-1] / sum(story.closings) if story.closings[-1] else 0.0,
        "repetition": _distinct_runs(told),
    }
    grammar = sum(story.good) / len(story.good)
    parts = {name: min(1.0, 2 * grammar) * value for name, value in parts.items()} | {"grammar": grammar}
    parts["complete"] = float(min(parts.values()) == 1.0)
    total = sum(WEIGHTS[part] * value for part, value in parts.items())
    return GoldReward(total=round(total, 6), **parts)


def _friend(asked: Ingredients, story: Checked, told: list[str]) -> float:
    others = {token for token in told if token in words.KINDS and token != story.hero[1]}
    if asked.friend is None:
        return 0.0 if others else 1.0
    if asked.friend not in others:
        return 0.0
    return 1.0 if len(others) == 1 else 0.5


def _mood(asked: Ingredients, told: list[str]) -> float:
    shown = {_SHOWN[token] for token in told if token in _SHOWN}
    return 0.0 if asked.mood not in shown else 1.0 if len(shown) == 1 else 0.5


def _rule(asked: Ingredients, told: list[str]) -> float:
    if asked.events is None:  # without an exclusion none is broken
        return 0.0 if asked.excluded in told else 1.0
    first, second = (words.EVENTS[event] for event in asked.events)
    if first not in told or second not in told:
        return 0.0
    return 1.0 if told.index(first) < told.index(second) else 0.5


def _distinct_runs(tokens: list[str]) -> float:
    runs = [tuple(tokens[start : start + 4]) for start in range(max(1, len(tokens) - 3))]
    return len(set(runs)) / len(runs)
