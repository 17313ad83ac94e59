"""Numbers and verdicts in plain words, for people who read the report."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from align.compare.statistics import LEAST_PROMPTS

MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b")


class Note(NamedTuple):
    """What goes with a verdict.

    Attributes:
        text: a clause.
        warning: whether it speaks against the verdict.
    """

    text: str
    warning: bool


def decimals(intervals: Iterable[Sequence[float | None]]) -> int:
    """Decimals that show two digits of the middle interval's half width, so that a column shares them.

    Args:
        intervals: ``(low, high)`` of each number of the column.
    """
    halves = [abs(high - low) / 2 for low, high in intervals if low is not None and high is not None]
    halves = [half for half in halves if 0 < half < math.inf]
    if not halves:
        return 2
    return min(4, max(0, 1 + math.ceil(-math.log10(statistics.median_low(halves)))))


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """``0.75``; a dash for what is not known.

    Args:
        value: what is written.
        digits: after the point.
        sign: whether a plus is written too.
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
    """A mean and its interval as the two lines of a cell.

    Args:
        value: with ``mean`` and ``ci95``, or None.
        digits: after the point.
        sign: whether a plus is written too.
    """
    if value is None:
        return {"mean": "-", "interval": ""}
    low, high = (number(end, digits, sign=sign) for end in value["ci95"])
    return {"mean": number(value["mean"], digits, sign=sign), "interval": f"{low} to {high}"}


def share(value: Mapping[str, Any] | None) -> dict[str, str]:
    """``estimate`` of a share, in percent."""
    if value is None:
        return {"mean": "-", "interval": ""}
    low, high = map(percent, within(value["ci95"]))
    return {"mean": percent(value["mean"]), "interval": f"{low} to {high}"}


def within(ends: Sequence[float]) -> tuple[float, float]:
    """The part of a share's interval that a share can have: one over seeds is symmetric and may leave 0 to 100%."""
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return low, high


def cost(field: str, value: float | None) -> str:
    """What something cost, in the unit that reads best.

    Args:
        field: of the manifest's ``cost``; its ending tells the unit.
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


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the first judge says of every pair, the better model first, and what speaks against it.

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
        text = f"{report['prompts']} prompts are too few to call a model better: it takes {LEAST_PROMPTS}"
        notes.append(Note(text, warning=True))
    notes += _equal_length(pair)
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


def _equal_length(pair: Mapping[str, Any]) -> list[Note]:
    controlled = pair["length_controlled"]
    if controlled is None or pair["better"] is None:
        return []
    low, high = controlled["ci95"]
    wins = controlled["mean"] if pair["better"] == pair["a"] else 1 - controlled["mean"]
    if low <= 0.5 <= high:
        return [Note(f"at equal length no difference is shown ({percent(wins)})", warning=True)]
    if wins < 0.5:
        return [Note(f"at equal length it is the other way round ({percent(wins)})", warning=True)]
    return []


def _other_judge(other: Mapping[str, Any], pair: Mapping[str, Any]) -> Note:
    name, better = other["judge"], other["better"]
    if better is None:
        return Note(f"{name} shows no difference ({percent(other['win_rate'])} for {other['a']})", warning=False)
    wins = percent(other["win_rate"] if better == other["a"] else 1 - other["win_rate"])
    if better == pair["better"]:
        return Note(f"{name} agrees ({wins})", warning=False)
    disagrees = pair["better"] is not None
    text = (
        f"{name} disagrees: it finds {better} better ({wins})"
        if disagrees
        else f"{name} finds {better} better ({wins})"
    )
    return Note(text, warning=disagrees)
