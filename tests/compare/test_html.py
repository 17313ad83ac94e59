"""The HTML report: what it says, that foreign text stays text, and that odd comparisons have a page too."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from align.compare import charts, picks, wording
from align.compare.html import write_html

ROOT = Path(__file__).resolve().parents[2]
EIGHT = (
    "sft",
    "dpo beta 0.1",
    "dpo beta 0.3",
    "dpo beta 1",
    "ppo kl 0.05",
    "ppo kl 0.1",
    "ppo with a long name",
    "grpo",
)
Make = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="samples-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def _verdicts(page: str) -> list[tuple[str, str]]:
    """Each verdict's kind, ``shown`` (a model is better) or ``none``, and its text."""
    found = re.findall(r'<li class="(shown|none)">(.*?)</li>', page, re.DOTALL)
    return [(kind, _text(item)) for kind, item in found]


def _says(page: str, kind: str, *words: str) -> bool:
    """Whether a verdict of a kind has these words in this order."""
    pattern = ".*".join(
        rf"(?<![\d.]){re.escape(word)}(?!\d)" if word[0].isdigit() else rf"\b{word}\b" for word in words
    )
    return any(found == kind and re.search(pattern, text) for found, text in _verdicts(page))


def _text(page: str) -> str:
    """What a reader reads, on one line."""
    shown = re.sub(r"<(style|script).*?</\1>|<(title|desc)\b.*?</\2>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", shown.replace("<small>", " "))).split())


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"names": ("a model", "b"), "judges": ("gold",), "prompts": 5, "n": 1, "checkpoints": 0, "cost": False},
        {"names": EIGHT},
        {"names": tuple(f"model {i}" for i in range(11)), "prompts": 4},
        {"seeds": 3},
        {"judges": ("gpt",), "scores": False, "checkpoints": 0},
        {"best_of": True, "texts": True},
        {"judges": (), "checkpoints": 0},
    ],
    ids=["plain", "least", "eight", "eleven", "seeds", "endpoint", "best of n and texts", "no judge"],
)
def test_every_comparison_has_a_page_that_needs_nothing_else(make_report: Make, case: dict[str, Any]):
    report, rows = make_report(**case)
    page = write_html(report, rows)
    assert set(re.findall(r'(?:src|href|action)="([^"#]*)', page)) <= {"", "data:,"}
    assert "@import" not in page
    assert "url(" not in page
    text = _text(page)
    assert all(name in text for name in report["models"])
    assert "None" not in text
    assert "nan" not in text.split()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {target for target in re.findall(r'href="#([^"]+)"', page)} <= set(ids)


def test_a_chart_says_in_words_what_it_shows(make_report: Make):
    page = write_html(*make_report())
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    told = [picture for picture in pictures if picture.get("aria-hidden") != "true"]
    assert len(told) == 3
    for picture in told:
        assert picture.get("role") == "img"
        title, description = picture[0], picture[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text
        assert "sft" in (description.text or "")
        assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


@pytest.mark.parametrize(("kinds", "folded"), [(12, 0), (13, 1)])
def test_many_further_metrics_are_folded(make_report: Make, kinds: int, folded: int):
    report, rows = make_report(("sft", "dpo"), judges=("gold",))
    for kind in range(kinds):
        facts = {"label": f"kind {kind}", "meaning": "A test's.", "is_share": True, "is_column": False}
        report["metrics"].append({"name": f"kind{kind}", **facts})
        for model in report["models"].values():
            model["metrics"][f"kind{kind}"] = {"mean": 0.5, "ci95": [0.4, 0.6]}
    (section,) = re.findall(r'<section id="models".*?</section>', write_html(report, rows), re.DOTALL)
    assert section.count("<details>") == folded
    assert all(f">kind {kind}<" in section for kind in range(kinds))


def test_the_best_of_n_and_what_alignment_cost(make_report: Make):
    page = write_html(*make_report(("sft", "dpo", "ppo", "best"), best_of=True, texts=True))
    assert "best of 4 of sft by gold" in _text(page)
    assert "upper bound" in _text(page)
    (table,) = re.findall(r'<section id="texts".*?</section>', page, re.DOTALL)
    rows = [_text(row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]]
    assert [row[:3] for row in rows] == ["sft", "dpo", "ppo"], "the best of N has sft's weights"
    assert rows[0].endswith("baseline")
    assert re.search(r"1\.11 .*\+0\.0100 .*21\.0 .*worse$", rows[1])
    assert "another tokenizer" in rows[2]
    (cost,) = re.findall(r'<section id="cost".*?</section>', page, re.DOTALL)
    assert "best" not in _text(cost)
    without = write_html(*make_report())
    assert 'id="texts"' not in without
    assert ">tokens sampled<" not in without


def test_verdicts_in_plain_words(make_report: Make):
    """Gold: ppo wins 60% against sft, where the means show nothing; and 30% (20% to 40%) against dpo, so that dpo wins
    1 - 0.3 = 70% (1 - 0.4 = 60% to 1 - 0.2 = 80%), although its mean is lower by 0.2 (0.1 to 0.3). By reward sft wins
    70% against ppo.
    """
    report, rows = make_report()
    for pair in report["pairs"]:
        if (pair["a"], pair["b"], pair["judge"]) == ("ppo", "sft", "gold"):
            pair |= {"win_rate": 0.6, "ci95": [0.55, 0.65], "better": "ppo"}
            pair |= {"length_controlled": {"mean": 0.51, "ci95": [0.45, 0.57]}, "better_length_controlled": None}
            pair |= {"difference": {"mean": 0.01, "ci95": [-0.04, 0.06]}, "better_difference": None}
        if (pair["a"], pair["b"], pair["judge"]) == ("ppo", "sft", "reward"):
            pair |= {"win_rate": 0.3, "ci95": [0.2, 0.4], "better": "sft"}
        if (pair["a"], pair["b"], pair["judge"]) == ("ppo", "dpo", "gold"):
            pair |= {"win_rate": 0.3, "ci95": [0.2, 0.4], "better": "dpo", "better_length_controlled": "dpo"}
            pair |= {"difference": {"mean": 0.2, "ci95": [0.1, 0.3]}, "better_difference": "ppo"}
        if (pair["a"], pair["b"], pair["judge"]) == ("dpo", "sft", "gold"):
            pair |= {"win_rate": 0.52, "ci95": [0.48, 0.56], "better": None, "better_length_controlled": None}
            pair |= {"difference": {"mean": 0.3, "ci95": [0.1, 0.5]}, "better_difference": "dpo"}
    page = write_html(report, rows)
    against_sft = ("ppo", "sft", "60.0%", "55.0%", "65.0%")
    assert _says(page, "shown", *against_sft, "mean gold", "0.010", "0.040", "0.060", "51.0%")
    assert _says(page, "shown", *against_sft, "reward", "sft", "70.0%")
    assert _says(page, "shown", "dpo", "ppo", "70.0%", "60.0%", "80.0%", "disagree", "mean gold", "ppo", "0.20")
    assert _says(page, "none", "dpo", "sft", "52.0%", "48.0%", "56.0%", "mean gold", "dpo", "0.30")


@pytest.mark.parametrize(
    ("wins", "mean", "words"),
    [
        ("a", "a", "a .*wins.* mean gold"),
        ("a", None, "a .*wins.*; mean gold: no difference"),
        (None, "b", "win-rate: no difference.*; b .*mean gold"),
        ("a", "b", "disagree: a .*wins.*, b .*mean gold"),
        (None, None, "^no difference shown$"),
    ],
)
def test_a_verdict_names_its_measure(wins: str | None, mean: str | None, words: str):
    pair = {"judge": "gold", "better": wins, "better_difference": mean, "better_length_controlled": wins}
    pair |= {"verdict": f"{wins} wins more often" if wins else "no difference shown"}
    text = wording.pair_verdict(pair | {"difference": {}, "length_controlled": {}})
    assert re.search(words, text)
    alone = pair | {"difference": None, "length_controlled": None}
    assert wording.pair_verdict(alone) == pair["verdict"]
    shorter = pair | {"difference": {}, "length_controlled": {}, "better_length_controlled": "b"}
    assert re.search("; at equal length: b ", wording.pair_verdict(shorter))


def test_too_few_prompts_name_no_winner(make_report: Make):
    page = write_html(*make_report(("a", "b"), prompts=12))
    assert _says(page, "none", "b", "a", "12", "20")
    assert {kind for kind, _ in _verdicts(page)} == {"none"}


def test_a_share_never_leaves_0_to_100_percent(make_report: Make):
    report, rows = make_report(("a", "b"), judges=("gold",))
    report["pairs"][0] |= {"win_rate": 0.9, "ci95": [0.7, 1.1], "better": "b"}
    report["pairs"][0]["length_controlled"] = {"mean": 0.9, "ci95": [0.75, 1.2]}
    page = write_html(report, rows)
    text = _text(page)
    assert _says(page, "shown", "b", "a", "90.0%", "70.0%", "100.0%")
    assert re.search(r"(?<!\d)10\.0% 0\.0% \D*\b30\.0%", text)
    assert re.search(r"(?<!\d)75\.0% \D*\b100\.0%", text)
    assert "110.0%" not in text


def test_foreign_text_stays_text(make_report: Make):
    evil = "</script><script>window.broken = 1</script><img src=x onerror=alert(1)><!--"
    report, rows = make_report(("sft", evil), judges=("gold",))
    rows[0]["prompt"] = evil
    rows[0]["responses"]["sft"][0]["text"] = evil
    report["settings"].append({"setting": evil, "values": {"sft": evil}})
    page = write_html(report, rows)
    assert evil not in page
    assert "<img" not in page
    assert page.count("<script") == 2
    assert _data(page)["rows"][0][1] == evil
    assert _data(page)["rows"][0][3][0][0][0] == evil
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_policy_names_the_one_script(make_report: Make):
    page = write_html(*make_report(("a", "b"), prompts=2))
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_without_scripts_the_best_the_worst_and_the_most_different_are_there(make_report: Make):
    report, rows = make_report(("sft", "dpo"), judges=("gold",))
    for row in rows:
        for responses in row["responses"].values():
            for response in responses:
                response["rewards"]["gold"] = 0.5
    rows[3]["responses"]["dpo"][1] |= {"text": "the best of all", "rewards": {"gold": 0.9}}
    rows[4]["responses"]["dpo"][0] |= {"text": "the worst of all", "rewards": {"gold": -0.5}}
    groups = picks.picks(report, rows)
    best, worst, different = ([card for card in group["cards"] if "dpo" in card["titles"][-1]][-1] for group in groups)
    assert (best["number"], best["k"], best["responses"][1]["text"]) == (4, 1, "the best of all")
    assert (worst["number"], worst["k"], worst["responses"][1]["text"]) == (5, 0, "the worst of all")
    (title,) = different["titles"]
    assert re.search("dpo.*sft.*gold.*\N{MINUS SIGN}1.00", title)
    assert "the best of all" in _text(write_html(report, rows))


def test_a_large_comparison_carries_evenly_spread_rows_and_says_so(make_report: Make, monkeypatch: pytest.MonkeyPatch):
    """Of 30 rows 10 are carried: every third."""
    report, rows = make_report()
    monkeypatch.setattr(picks, "EMBEDDED_ROWS", 10)
    page = write_html(report, rows)
    assert [row[0] for row in _data(page)["rows"]] == list(range(1, 31, 3))
    assert re.search(r"\b10\b\D*\b30\b\D*samples\.jsonl", _text(page))
    monkeypatch.setattr(picks, "EMBEDDED_LETTERS", 1)
    assert len(_data(write_html(report, rows))["rows"]) == 1


def test_odd_responses(make_report: Make):
    report, rows = make_report(("sft", "dpo"), judges=("gold",))
    first = rows[0]["responses"]["dpo"]
    first[0] |= {"text": " \n", "rewards": {"gold": 99.0}}
    rows[1]["responses"]["dpo"][0] |= {"text": "łódź \U0001f98a مرحبا " + "long " * 5_000, "rewards": {"gold": -99.0}}
    page = write_html(report, rows)
    assert 'class="text empty"' in page
    assert "łódź \U0001f98a مرحبا" in page
    assert re.search(r'tabindex="0" role="region" aria-label="[^"]*\bdpo"', page)
    report["models"]["dpo"]["metrics"]["SelfBLEU"] = None
    write_html(report, rows)
    assert "<article" in page
    assert "<article" not in write_html(report, [])


def test_without_a_frontier_the_models_own_numbers_are_drawn(make_report: Make):
    def lede(page: str) -> str:
        (found,) = re.findall(r'<section id="frontier".*?<p class="lede">(.*?)</p>', page, re.DOTALL)
        return found

    assert lede(write_html(*make_report(checkpoints=0))) != lede(write_html(*make_report()))


def test_the_cost_of_the_reward_model_stands_beside_that_of_the_model_that_learned_from_it(make_report: Make):
    """Row of labelled pairs: 1234.5, 2469 and 3703.5, the last one's reward model's the same."""
    page = write_html(*make_report())
    (table,) = re.findall(r'<section id="cost".*?</section>', page, re.DOTALL)
    assert "1,2342,4693,7043,704" in _text(table)
    assert table[: table.index("</thead>")].count("<small>") == 1
    assert "1,2342,469" not in _text(write_html(*make_report(cost=False)))


def test_prompts_of_several_messages_tell_who_speaks():
    assert picks.asked("go on") == "go on"
    assert picks.asked([{"role": "user", "content": "tell"}]) == "tell"
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "tell"}]
    assert picks.asked(chat) == "system: be kind\nuser: tell"


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.7541, 3, False, "0.754"),
        (-0.055, 2, True, "\N{MINUS SIGN}0.06"),
        (0.1, 1, True, "+0.1"),
        (-0.001, 2, True, "0.00"),
        (12345.6, 0, False, "12,346"),
        (None, 2, False, "-"),
        (float("inf"), 2, False, "-"),
    ],
)
def test_numbers(value: float | None, digits: int, sign: bool, text: str):
    assert wording.number(value, digits, sign=sign) == text


def test_a_column_has_the_digits_of_its_middle_interval():
    """Half widths 0.02, 0.03 and 0.4: two digits of 0.03 take 3 decimals."""
    assert wording.decimals([(0.0, 0.04), (0.0, 0.06), (0.0, 0.8)]) == 3
    assert wording.decimals([(0.0, 0.0), (None, None)]) == 2
    assert wording.decimals([(0.0, 100.0)]) == 0


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("wall_seconds", 9.25, "9.2 s"),
        ("wall_seconds", 192.4, "3 min 12 s"),
        ("cpu_seconds", 7_260.0, "2 h 01 min"),
        ("peak_memory_mib", 800.0, "800 MiB"),
        ("peak_memory_mib", 2_048.0, "2.0 GiB"),
        ("flops", 3.21e14, "3.21 \N{MULTIPLICATION SIGN} 10\u00b9\u2074"),
        ("tokens_trained", 1_234_567.0, "1,234,567"),
        ("labels", None, "-"),
    ],
)
def test_costs_in_the_unit_that_reads_best(field: str, value: float | None, text: str):
    assert wording.cost(field, value) == text


def test_models_differ_in_shape_and_colour():
    looks = {(str(charts.marker(model, 0, 0)), charts.colour(model)) for model in range(20)}
    assert len(looks) == 20
    assert len({shape for shape, _ in looks}) == charts.COLOURS
