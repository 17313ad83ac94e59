"""Readers, filters and masks, one by one."""

import bz2
import gzip
from pathlib import Path

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from align.curate.cleaning import (
    BookText,
    CodeQuality,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
    JsonLines,
    Language,
    MaskPersonalData,
    WikipediaDump,
)
from align.curate.cleaning.readers import plain_text
from align.curate.personal import PATTERNS

WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo/>
<page><title>River</title><ns>0</ns><id>7</id><revision><id>99</id><text>A '''river''' is [[water|flowing
water]].{{Infobox|a=1}}&lt;ref&gt;A source&lt;/ref&gt; [[File:River.jpg|thumb|A [[picture]]]] It ends in the [[sea]].

{| class="wikitable"
| cell
|}
[[Category:Water]]</text></revision></page>
<page><title>Talk:River</title><ns>1</ns><id>8</id><revision><text>Talk</text></revision></page>
<page><title>Stream</title><ns>0</ns><id>9</id><redirect title="River"/><revision><text>#R</text></revision></page>
</mediawiki>"""


def test_articles_of_a_wikipedia_dump(tmp_path):
    (tmp_path / "x-pages-articles.xml.bz2").write_bytes(bz2.compress(WIKI.encode()))
    (article,) = WikipediaDump(str(tmp_path)).run()
    assert article.id == "7"
    assert article.metadata["title"] == "River"
    assert " ".join(article.text.split()) == "A river is flowing water. It ends in the sea."


def test_json_lines_that_cannot_be_read_are_counted_and_the_others_kept(tmp_path):
    lines = [b'{"body": "one", "name": "a", "year": 1}', b"no JSON", b'["a list"]', b'{"body": "two"}', b"", b"\xff{}"]
    lines += [b'{"body": "  "}', b'{"text": "another field"}', b'{"body": 3}', b'{"body": "three"}']
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    (tmp_path / "notes.txt").write_text("not read")
    reader = JsonLines(str(tmp_path), text_key="body", id_key="name")
    found = list(reader.run())
    assert [(document.text, document.id.rpartition("/")[2]) for document in found] == [
        ("one", "a"),
        ("two", "3"),
        ("three", "9"),
    ]
    assert found[0].metadata["year"] == 1
    assert {name: int(reader.stats[name].total) for name in ("dropped_not_json", "dropped_no_text")} == {
        "dropped_not_json": 3,
        "dropped_no_text": 3,
    }


def test_markup_that_is_not_closed_is_text():
    assert plain_text("An [[open link and {{a template") == "An [[open link and {{a template"


def test_the_body_of_a_book():
    mark = "*** {} OF THE PROJECT GUTENBERG EBOOK X ***"
    text = f"Note\n{mark.format('START')}\nOnce.\n{mark.format('END')}\nMore"
    assert [document.text for document in BookText().run([Document(text, "1"), Document("Plain", "2")])] == [
        "Once.",
        "Plain",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("def f():\n    return 1\n", True),
        ("x" * 1000, False),  # a mean of 1000
        ("x" * 1001, (False, "long_line")),
        ("x = 1\n" + "y" * 196 + "\n", False),  # a mean of (5 + 196) / 2 > 100
        ("x = 1\n" + "y" * 195 + "\n", True),
        ("((((a))))\n", (False, "few_letters")),  # 1 of 10
    ],
)
def test_code_quality(text, kept):
    found = CodeQuality().filter(Document(text, "1"))
    reason = (False, "long_lines") if kept is False else kept
    assert found == reason


def test_language():
    english = Document("The house stood by the river, and the people of the village went there every morning.", "1")
    french = Document("La maison se trouvait au bord de la rivière, et les gens du village y allaient le matin.", "2")
    keep = Language(["en"])
    assert keep.filter(english) == (True, "")
    assert keep.filter(french) == (False, "fr")
    assert (english.metadata["language"], french.metadata["language"]) == ("en", "fr")
    assert Language(["fr", "en"]).filter(french)[0]
    assert Language(["en"], threshold=1.0).filter(english) == (False, "uncertain")
    with pytest.raises(ValueError, match="languages"):
        Language([])
    with pytest.raises(ValueError, match="threshold"):
        Language(["en"], threshold=2)


@pytest.mark.parametrize("page", ["index", "extend/add_a_metric_or_health_check", "export", "dpo"])
def test_a_manual_with_code_and_tables_is_english(page):
    text = (Path(__file__).resolve().parents[3] / f"docs/{page}.md").read_text()
    assert Language(["en"]).filter(Document(text, page)) == (True, "")


def test_repeated_lines():
    """Before any words are counted: 3 of 4 lines stood before."""
    text = "the same line again\n" * 3 + "and another one"
    assert GopherRepetition(dup_para_frac=None, dup_para_char_frac=None).filter(Document(text, "1")) == (
        False,
        "dup_line_frac",
    )
    assert GopherRepetition(top_n_grams=[(2, 0.5)]).top_n_grams == ((2, 0.5),)
    assert GopherRepetition().dup_n_grams[0] == (5, 0.15)


PERSONAL = [
    "jane.doe@gmail.com", "+49 89 1234 5678", "(415) 233-9812", "8.8.8.8", "4111 1111 1111 1111", "ghp_" + "a" * 36,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpQ\nabc=\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip
HARMLESS = ["name@example.com", "192.168.1.1", "555-0100", "version 1.2.3", "3.14159", "x", "\n", " ", "a-b", "12:30"]


@given(st.lists(st.sampled_from(PERSONAL + HARMLESS), max_size=12), st.sampled_from([" ", "\n", ", "]))
def test_nothing_is_found_in_what_was_masked(parts, between):
    (document,) = MaskPersonalData().run([Document(between.join(parts), "1")])
    assert not [found for pattern in PATTERNS for found in pattern.matches(document.text)]


@pytest.mark.parametrize("text", PERSONAL)
def test_each_kind_is_masked_whole(text):
    (document,) = MaskPersonalData().run([Document(f"before {text} after", "1")])
    assert document.text.startswith("before ")
    assert document.text.endswith(" after")
    masks = {pattern.mask for pattern in PATTERNS}
    assert document.text.removeprefix("before ").removesuffix(" after") in masks
    assert sum(document.metadata["masked"].values()) == 1


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_nobodys_stays(text):
    (document,) = MaskPersonalData().run([Document(text, "1")])
    assert document.text == text


def test_only_the_kinds_that_are_wanted():
    (document,) = MaskPersonalData(["email addresses"]).run([Document("jane.doe@gmail.com 8.8.8.8", "1")])
    assert document.text == "name@example.com 8.8.8.8"


PASSAGE = (
    "The river ran to the sea, and people of the village, who had never been there, went with it. "
    "They were to have bread, cheese; that was all: no wine, no meat! "
) * 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PASSAGE, None),
        ("The river ran to the sea.", "gopher_short_doc"),
        ("stone " * 60, "gopher_enough_stop_words"),
        (PASSAGE + "12 34 56 " * 20, "gopher_below_alpha_threshold"),  # 96 of 156 words with a letter
        (PASSAGE + "# " * 12, "gopher_too_many_hashes"),  # 12 of 108 words
    ],
)
def test_gopher_quality_counts_what_stands_between_spaces(text, reason):
    words = len(PASSAGE.split())
    assert words == 96
    found = GopherQuality().filter(Document(text, "1"))
    assert found is True if reason is None else found == (False, reason)


def test_punctuation_can_count_as_words():
    """spaCy splits commas off: of "a, b; c" five words three have a letter."""
    text = "bread, cheese; wine: meat! " * 20 + "the and"
    assert GopherQuality().filter(Document(text, "1")) is True
    assert GopherQuality(language="en").filter(Document(text, "1")) == (False, "gopher_below_alpha_threshold")


def test_fineweb_quality():
    assert FineWebQuality().filter(Document(PASSAGE.strip(), "1")) is True
    assert FineWebQuality().filter(Document("home\nshop\ncart\nlogin", "1")) == (False, "line_punct_ratio")
    assert FineWebQuality(line_punct_thr=0.0).filter(Document("home\nshop", "1")) == (False, "short_line_ratio")
