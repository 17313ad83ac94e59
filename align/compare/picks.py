"""Responses side by side: a few picked ones, and those that the page contains for searching.

A pick shows the responses of all models to one prompt from the same random numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.compare.wording import number

EMBEDDED_ROWS = 400
"""Most rows in the page"""
EMBEDDED_LETTERS = 8_000_000
"""About the most characters of these rows"""
_FIRST = 3
"""Prompts that are shown if no judge gives scores"""


def picks(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each model's best and worst response and its largest difference from the baseline, by the first scoring judge.

    Args:
        report: the content of report.json.
        rows: responses side by side.

    Returns:
        list: groups of ``title`` and ``cards``.
    """
    judges = scoring(rows)
    if not judges:
        shown = [_card(report, rows, place, 0, "") for place in range(min(_FIRST, len(rows)))]
        return [{"title": "The first prompts", "cards": shown}]
    judge, baseline = judges[0], report["baseline"]
    places = [(place, k) for place, row in enumerate(rows) for k in range(len(row["responses"][baseline]))]

    def score(name: str, at: tuple[int, int]) -> float:
        return rows[at[0]]["responses"][name][at[1]]["rewards"][judge]

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
    titles = ("Best responses", "Worst responses", "Most different from the baseline")
    return [
        {"title": title, "cards": list(_merged(cards))}
        for title, cards in zip(titles, (best, worst, different), strict=True)
    ]


def scoring(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Judges with scores."""
    first = next((response for row in rows for responses in row["responses"].values() for response in responses), None)
    return list(first["rewards"]) if first else []


def embedded(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows that the page can search, evenly spaced if there are too many.

    Args:
        report: the content of report.json.
        rows: responses side by side.

    Returns:
        dict: names, and ``rows`` of number, prompt, seed, and for each model and response ``[text, tokens, finished,
        log-ratio, scores]``.
    """
    judges, names = scoring(rows), list(report["models"])
    letters = sum(len(response["text"]) + 40 for row in rows for many in row["responses"].values() for response in many)
    kept = min(EMBEDDED_ROWS, len(rows), max(1, int(len(rows) * min(1.0, EMBEDDED_LETTERS / max(1, letters)))))
    found = []
    for place in sorted({step * len(rows) // kept for step in range(kept)}) if rows else []:
        row = rows[place]
        responses = [
            [
                [
                    response["text"],
                    response["tokens"],
                    response["finished"],
                    None if response["log_ratio"] is None else round(response["log_ratio"], 2),
                    [round(response["rewards"][judge], 4) for judge in judges],
                ]
                for response in row["responses"][name]
            ]
            for name in names
        ]
        found.append([place % report["prompts"] + 1, asked(row["prompt"]), row["seed"], responses])
    return {
        "models": names,
        "judges": judges,
        "baseline": report["baseline"],
        "seeds": report["seeds"],
        "total": len(rows),
        "rows": found,
    }


def asked(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as one text, with roles if it has several messages."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _card(
    report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], place: int, k: int, title: str
) -> dict[str, Any]:
    row = rows[place]
    responses = []
    for model, (name, many) in enumerate(row["responses"].items()):
        response = many[k]
        scores = [f"{judge} {number(value)}" for judge, value in response["rewards"].items()]
        responses.append(
            {
                "model": model,
                "name": name,
                "text": response["text"],
                "finished": response["finished"],
                "facts": ", ".join([*scores, f"{response['tokens']} tokens"]),
            }
        )
    return {
        "titles": [title] if title else [],
        "number": place % report["prompts"] + 1,
        "k": k,
        "seed": row["seed"],
        "seeds": report["seeds"],
        "prompt": asked(row["prompt"]),
        "responses": responses,
    }


def _merged(cards: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Merge cards of the same responses into one with all their titles."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for card in cards:
        at = (card["seed"], card["number"], card["k"])
        if at in found:
            found[at]["titles"] += card["titles"]
        else:
            found[at] = card
    yield from found.values()
