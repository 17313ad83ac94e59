"""Numbers and verdicts as the report writes them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from align.evaluate.statistics import LEAST_PROMPTS

MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b")


KL_NOTES = {"tokens": "", "text": "by text", "bound": "upper bound", "not comparable": "not comparable"}
"""What a KL is based on (``by`` in report.json) -> the remark beside it"""


class Note(NamedTuple):
    """A remark on a verdict.

    Attributes:
        text: a clause.
        warning: whether it casts doubt on the verdict.
    """

    text: str
    warning: bool


def decimals(intervals: Iterable[Sequence[float | None]]) -> int:
    """Decimals of a column: those that show two digits of the median interval's half width.

    Args:
        intervals: ``(low, high)`` of each number of the column.
    """
    halves = [abs(high - low) / 2 for low, high in intervals if low is not None and high is not None]
    halves = [half for half in halves if 0 < half < math.inf]
    if not halves:
        return 2
    return min(4, max(0, 1 + math.ceil(-math.log10(statistics.median_low(halves)))))


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """``0.75``; a dash for None.

    Args:
        value: the number.
        digits: after the point.
        sign: write a plus too.
    """
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: float | None) -> str:
    """``88.7%``."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.1%}"


def estimate(value: Mapping[str, Any] | None, digits: int, *, sign: bool = False) -> dict[str, str]:
    """A mean and its interval, the two lines of a cell.

    Args:
        value: with ``mean`` and ``ci95`` (which may be None), or None.
        digits: after the point.
        sign: write a plus too.
    """
    if value is None:
        return {"mean": "-", "interval": ""}
    if value["ci95"] is None:
        return {"mean": number(value["mean"], digits, sign=sign), "interval": ""}
    low, high = (number(end, digits, sign=sign) for end in value["ci95"])
    return {"mean": number(value["mean"], digits, sign=sign), "interval": f"{low} to {high}"}


def share(value: Mapping[str, Any] | None) -> dict[str, str]:
    """``estimate`` of a share, in percent."""
    if value is None:
        return {"mean": "-", "interval": ""}
    if value["ci95"] is None:
        return {"mean": percent(value["mean"]), "interval": ""}
    low, high = map(percent, within(value["ci95"]))
    return {"mean": percent(value["mean"]), "interval": f"{low} to {high}"}


def within(ends: Sequence[float]) -> tuple[float, float]:
    """A share's interval clipped to 0 to 100%: over seeds it is symmetric and may exceed them."""
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return low, high


def cost(field: str, value: float | None) -> str:
    """A cost in a readable unit.

    Args:
        field: of the manifest's ``cost``; its ending is the unit.
        value: in that unit.
    """
    if value is None or not math.isfinite(value):
        return "-"
    if field.endswith("_seconds"):
        return _duration(value)
    if field.endswith("_mib"):
        return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"
    if abs(value) >= 1e10:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.2f} \N{MULTIPLICATION SIGN} 10{str(exponent).translate(_SUPERSCRIPTS)}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{whole // 60} min {whole % 60:02d} s"


def origin(model: Mapping[str, Any]) -> str:
    """Where a model's responses come from: ``dpo, step 100``, or ``best of 4 of sft by reward``.

    Args:
        model: of report.json.
    """
    if (rule := model["best_of"]) is not None:
        return f"best of {rule['n']} of {rule['model']} by {rule['judge']}"
    step = [] if model["step"] is None else [f"step {model['step']:,}"]
    return ", ".join([model["stage"] or "not by align", *step])


def pair_verdict(pair: Mapping[str, Any]) -> str:
    """The verdicts of all measures on a pair in one clause, each with the measure that it rests on.

    Args:
        pair: of report.json.
    """
    wins, mean, judge = pair["better"], pair["better_difference"], pair["judge"]
    if pair["difference"] is None or (wins is None and mean is None):
        text = pair["verdict"]
    elif wins is None:
        text = f"win-rate: no difference shown; {mean} has the higher mean {judge}"
    elif mean is None:
        text = f"{wins} wins more often; mean {judge}: no difference shown"
    elif wins == mean:
        text = f"{wins} wins more often and has the higher mean {judge}"
    else:
        text = f"the measures disagree: {wins} wins more often, {mean} has the higher mean {judge}"
    return text + (f"; at equal length: {_at_equal_length(pair)}" if _length_matters(pair) else "")


def _length_matters(pair: Mapping[str, Any]) -> bool:
    """Whether the verdict by win-rate changes at equal length."""
    return pair["length_controlled"] is not None and pair["better_length_controlled"] != pair["better"]


def _at_equal_length(pair: Mapping[str, Any]) -> str:
    better = pair["better_length_controlled"]
    return f"{better} wins more often" if better else "no difference shown"


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first judge's verdict on every pair by win-rate, the better model first, with what the other measures say.

    Args:
        report: the content of report.json.

    Returns:
        list: ``first``, ``second``, ``better`` (whether the first is), ``mean`` and ``ci95`` of the first's win-rate,
        ``notes``.
    """
    judge = report["judges"][0]["name"]
    return [_verdict(report, pair) for pair in report["pairs"] if pair["judge"] == judge]


def _verdict(report: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    flipped = pair["better"] == pair["b"]
    first, second = (pair["b"], pair["a"]) if flipped else (pair["a"], pair["b"])
    mean, (low, high) = pair["win_rate"], within(pair["ci95"])
    if flipped:
        mean, low, high = 1 - mean, 1 - high, 1 - low
    notes = []
    if report["prompts"] < LEAST_PROMPTS:
        text = f"{report['prompts']} prompts are too few for a verdict: it takes {LEAST_PROMPTS}"
        notes.append(Note(text, warning=True))
    if pair["difference"] is not None:
        notes.append(_difference(pair, first))
    if _length_matters(pair):
        wins = pair["length_controlled"]["mean"]
        share_of_first = percent(wins if first == pair["a"] else 1 - wins)
        text = f"at equal length: {_at_equal_length(pair)} ({share_of_first} for {first})"
        notes.append(Note(text, warning=True))
    notes += [
        _other_judge(other, pair)
        for other in report["pairs"]
        if {other["a"], other["b"]} == {first, second} and other["judge"] != pair["judge"]
    ]
    return {
        "first": first,
        "second": second,
        "better": pair["better"] is not None,
        "mean": mean,
        "ci95": [low, high],
        "notes": notes,
    }


def _difference(pair: Mapping[str, Any], first: str) -> Note:
    """What the difference of the mean scores says; a warning where it does not confirm the verdict by win-rate."""
    sign = 1 if first == pair["a"] else -1
    low, high = sorted(sign * end for end in pair["difference"]["ci95"])
    digits = decimals([(low, high)])
    mean, *ends = (number(value, digits, sign=True) for value in (sign * pair["difference"]["mean"], low, high))
    better = pair["better_difference"]
    agrees = better == pair["better"]
    if agrees and better is not None:
        return Note(f"the mean {pair['judge']} is higher too ({mean}, {' to '.join(ends)})", warning=False)
    conflict = "" if better is None or pair["better"] is None else "the measures disagree: "
    said = f"{better} is higher" if better else "no difference shown"
    text = f"{conflict}mean {pair['judge']}: {said} ({mean}, {' to '.join(ends)} for {first})"
    return Note(text, warning=not agrees)


def _other_judge(other: Mapping[str, Any], pair: Mapping[str, Any]) -> Note:
    name, better = other["judge"], other["better"]
    if better is None:
        return Note(f"by {name}: no difference shown ({percent(other['win_rate'])} for {other['a']})", warning=False)
    wins = percent(other["win_rate"] if better == other["a"] else 1 - other["win_rate"])
    if better == pair["better"]:
        return Note(f"{name} agrees ({wins})", warning=False)
    said = f"{better} wins more often ({wins})"
    if pair["better"] is None:
        return Note(f"by {name}: {said}", warning=False)
    return Note(f"{name} disagrees: {said}", warning=True)
