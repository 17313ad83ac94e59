"""Every page is in the site's navigation, and every relative link and anchor leads somewhere; mkdocs isn't needed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_imports import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
LINKING = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted(ROOT.glob("data_cards/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SNIPPET = re.compile(r'^ *--8<-- "([^":]+)', re.MULTILINE)
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Reads past the Python objects of mkdocs.yml."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
EXCLUDED = [line for line in (SITE.get("exclude_docs") or "").split("\n") if line.strip() and line[0] not in " #"]


def _leaves(nav: Any) -> Iterator[str]:
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from [item] if isinstance(item, str) else _leaves(item)


def _slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    return {_slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("What a step does", "what-a-step-does"),
        ("Shape: `GPTConfig`", "shape-gptconfig"),
        ("Instructions (recipes/instructions)", "instructions-recipesinstructions"),
        ("PPO, GRPO & RLOO", "ppo-grpo--rloo"),
    ],
)
def test_slugs_are_those_of_github(heading: str, slug: str):
    assert _slug(heading) == slug


def test_the_navigation_has_every_page_once():
    named = list(_leaves(SITE["nav"]))
    assert len(named) == len({*named})
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
    assert pages - {*named} == {*EXCLUDED}
    assert [name for name in {*named} - pages if not (ROOT / name).is_file()] == []


def test_the_overview_links_to_every_page():
    """docs/index.md is the list of pages for readers of the repository; docs/extend/ has its own."""
    linked = {(ROOT / "docs" / link).resolve() for link in LINK.findall((ROOT / "docs/index.md").read_text())}
    expected = {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "index.md"}
    assert expected <= linked


@pytest.mark.parametrize("page", LINKING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_resolve(page: Path):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_left_out_only_while_an_example_is_missing(page: Path):
    missing = [name for name in SNIPPET.findall(page.read_text()) if not (ROOT / name).is_file()]
    assert (page.relative_to(ROOT / "docs").as_posix() in EXCLUDED) == bool(missing), missing


CODE_MAP = (ROOT / "docs/code_map.md").read_text()


def test_the_code_map_names_files_that_exist():
    named = {*re.findall(r"\balign/[\w/]+(?:\.\w+)?", CODE_MAP)}
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_code_map_has_the_arrows_that_are_enforced():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", CODE_MAP, re.MULTILINE)
    assert {room: {*re.findall(r"`(\w+)`", arrows)} for room, arrows in rows} == MAY_IMPORT


def test_the_code_map_counts_the_files_of_each_walk():
    walks = CODE_MAP.partition("## Four walks")[2]
    stated = {
        name: (int(core), int(rest))
        for name, core, rest in re.findall(r"^\| (a .*) \| (\d+) \| (\d+) \|$", walks, re.M)
    }
    counted = {}
    for section in re.split(r"^### ", walks, flags=re.M)[1:]:
        title, steps = section.split("\n## ")[0].split("\n", 1)
        files = re.findall(r"^\d+\. `align/\S+`( \(\*\*core\*\*\))?:", steps, re.M)
        counted[title.lower()] = sum(map(bool, files)), files.count("")
    assert counted == {name.lower(): counts for name, counts in stated.items()}
