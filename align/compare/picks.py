"""Answers side by side: the few that every reader sees, and those that the page carries to be searched.

A pick shows the answers of all models to one prompt from the same random numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.compare.wording import number

EMBEDDED_ROWS = 400
"""Rows that the page carries, at most"""
EMBEDDED_LETTERS = 8_000_000
"""Letters of the rows that the page carries, at most, about"""
_FIRST = 3
"""Prompts that are shown where no judge gives scores"""


def picks(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each model's best and worst answer and its largest difference from the baseline, by the first judge with scores.

    Args:
        report: the content of report.json.
        rows: answers side by side.

    Returns:
        list: groups of ``title`` and ``cards``.
    """
    judges = scoring(rows)
    if not judges:
        shown = [_card(report, rows, place, 0, "") for place in range(min(_FIRST, len(rows)))]
        return [{"title": "The first prompts", "cards": shown}]
    judge, baseline = judges[0], report["baseline"]
    places = [(place, k) for place, row in enumerate(rows) for k in range(len(row["answers"][baseline]))]

    def score(name: str, at: tuple[int, int]) -> float:
        return rows[at[0]]["answers"][name][at[1]]["rewards"][judge]

    best, worst, different = [], [], []
    for name in report["models"]:
        scores = [score(name, at) for at in places]
        gaps = [own - score(baseline, at) for own, at in zip(scores, places, strict=True)]
        high, low = places[scores.index(max(scores))], places[scores.index(min(scores))]
        sizes = [abs(gap) for gap in gaps]
        far = sizes.index(max(sizes))
        best.append(_card(report, rows, *high, f"Best of {name}: {judge} {number(max(scores))}"))
        worst.append(_card(report, rows, *low, f"Worst of {name}: {judge} {number(min(scores))}"))
        if name != baseline:
            title = f"{name} against {baseline}: {judge} {number(gaps[far], sign=True)}"
            different.append(_card(report, rows, *places[far], title))
    titles = ("Best answers", "Worst answers", "Most different from the baseline")
    return [
        {"title": title, "cards": list(_merged(cards))}
        for title, cards in zip(titles, (best, worst, different), strict=True)
    ]


def scoring(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The judges that gave scores."""
    first = next((answer for row in rows for answers in row["answers"].values() for answer in answers), None)
    return list(first["rewards"]) if first else []


def embedded(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page searches: evenly spread rows where there are too many to carry.

    Args:
        report: the content of report.json.
        rows: answers side by side.

    Returns:
        dict: names, and ``rows`` of number, prompt, seed, and for each model and answer ``[text, tokens, finished,
        log-ratio, scores]``.
    """
    judges, names = scoring(rows), list(report["models"])
    letters = sum(len(answer["text"]) + 40 for row in rows for many in row["answers"].values() for answer in many)
    kept = min(EMBEDDED_ROWS, len(rows), max(1, int(len(rows) * min(1.0, EMBEDDED_LETTERS / max(1, letters)))))
    found = []
    for place in sorted({step * len(rows) // kept for step in range(kept)}) if rows else []:
        row = rows[place]
        answers = [
            [
                [
                    answer["text"],
                    answer["tokens"],
                    answer["finished"],
                    round(answer["log_ratio"], 2),
                    [round(answer["rewards"][judge], 4) for judge in judges],
                ]
                for answer in row["answers"][name]
            ]
            for name in names
        ]
        found.append([place % report["prompts"] + 1, asked(row["prompt"]), row["seed"], answers])
    return {
        "models": names,
        "judges": judges,
        "baseline": report["baseline"],
        "seeds": report["seeds"],
        "total": len(rows),
        "rows": found,
    }


def asked(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as one text; the roles are told where it is more than one question."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _card(
    report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], place: int, k: int, title: str
) -> dict[str, Any]:
    row = rows[place]
    answers = []
    for model, (name, many) in enumerate(row["answers"].items()):
        answer = many[k]
        scores = [f"{judge} {number(value)}" for judge, value in answer["rewards"].items()]
        answers.append(
            {
                "model": model,
                "name": name,
                "text": answer["text"],
                "finished": answer["finished"],
                "facts": ", ".join([*scores, f"{answer['tokens']} tokens"]),
            }
        )
    return {
        "titles": [title] if title else [],
        "number": place % report["prompts"] + 1,
        "k": k,
        "seed": row["seed"],
        "seeds": report["seeds"],
        "prompt": asked(row["prompt"]),
        "answers": answers,
    }


def _merged(cards: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cards of the same answers become one with all their titles."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for card in cards:
        at = (card["seed"], card["number"], card["k"])
        if at in found:
            found[at]["titles"] += card["titles"]
        else:
            found[at] = card
    yield from found.values()
