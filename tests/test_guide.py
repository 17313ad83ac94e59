"""The guide's code is the project's, its examples print what the pages show, and its figures come from scripts."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))
CHAPTERS = [page for page in PAGES if page.name != "index.md"]
FIGURES = sorted(path for path in (GUIDE / "figures").glob("*.py") if path.stem != "style")
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```text\n(?P<printed>.*?)^```$", re.MULTILINE | re.DOTALL)


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


guide_code, guide_pdf, guide_notebooks = map(_tool, ("guide_code", "guide_pdf", "guide_notebooks"))

FILE = '''import os


def first():
    return 1


class Thing:
    """A thing."""

    @property
    def size(self):
        """Two lines,

        the second indented."""
        return 2
'''


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first", "def first():\n    return 1"),
        (
            "Thing.size",
            '@property\ndef size(self):\n    """Two lines,\n\n    the second indented."""\n    return 2',
        ),
    ],
)
def test_source_is_that_of_the_file(tmp_path: Path, name: str, expected: str):
    path = tmp_path / "module.py"
    path.write_text(FILE)
    assert guide_code.source(path, name) == expected


@pytest.mark.parametrize("name", ["second", "Thing.length", "first.size"])
def test_a_renamed_function_is_an_error_that_names_it(tmp_path: Path, name: str):
    path = tmp_path / "module.py"
    path.write_text(FILE)
    with pytest.raises(ValueError, match=name):
        guide_code.source(path, name)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(ValueError, match="gone.py"):
        guide_code.source(tmp_path / "gone.py", "first")


def test_expansion_links_to_the_file_and_leaves_the_rest(tmp_path: Path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align/module.py").write_text(FILE)
    page = 'Before.\n\n{{ code("align/module.py", "first") }}\n\nAfter `{{ code("x", "y") }}`.\n'
    assert guide_code.expand(page, "guide/page.md", tmp_path) == (
        "Before.\n\n[`align/module.py`](../align/module.py), `first`:\n\n"
        "```python\ndef first():\n    return 1\n```\n\n"
        'After `{{ code("x", "y") }}`.\n'
    )


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_code_an_example_a_figure_and_answers(page: Path):
    text = page.read_text()
    expanded = guide_code.expand(text, f"guide/{page.name}", ROOT)
    assert "{{" not in re.sub(r"^( *)```.*?^\1```", "", expanded, flags=re.MULTILINE | re.DOTALL)
    assert guide_code.REFERENCE.search(text)
    assert EXAMPLE.search(text)
    assert re.search(r"!\[[^\]]+\]\(figures/\w+\.svg\)", text)
    exercises = text.partition("\n## Exercises\n")[2]
    asked = len(re.findall(r"^\*\*\d\.\*\*", exercises, re.MULTILINE))
    assert 2 <= asked <= 4
    assert exercises.count('\n??? note "Answer"\n') == asked


def test_every_chapter_is_in_the_table_of_the_index():
    assert {page.name for page in CHAPTERS} <= {*re.findall(r"\]\((\w+\.md)\)", (GUIDE / "index.md").read_text())}


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda path: path.stem)
def test_examples_print_what_the_page_shows(page: Path):
    for example in EXAMPLE.finditer(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example["code"], str(page), "exec"), {})
        assert printed.getvalue() == example["printed"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_recipes_and_files_that_a_page_names_exist(page: Path):
    named = re.findall(r"\b(?:align|recipes|docs|tools)/[\w/.-]+\.(?:py|yaml|md)\b", page.read_text())
    assert [name for name in named if not (ROOT / name).is_file() and "NAME" not in name] == []


def test_every_figure_has_a_script_and_a_chapter():
    drawn = {path.stem for path in (GUIDE / "figures").glob("*.svg")}
    shown = [name for page in PAGES for name in re.findall(r"\(figures/(\w+)\.svg\)", page.read_text())]
    assert drawn == {path.stem for path in FIGURES}
    assert sorted(shown) == sorted(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("script", FIGURES, ids=lambda path: path.stem)
def test_scripts_draw_their_figures(script: Path, tmp_path: Path):
    subprocess.run([sys.executable, script, tmp_path], check=True, cwd=ROOT)
    assert (tmp_path / f"{script.stem}.svg").read_text().count("<path") > 10


def test_the_book_has_every_chapter():
    assert sorted(guide_pdf.chapters()) == sorted(page.stem for page in CHAPTERS)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_of_the_book_needs_nothing_of_the_site(page: Path):
    text = guide_pdf.chapter(page.stem)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    inside = {f"#{name}" for name in guide_pdf.chapters()}
    for link in links:
        assert link.startswith("http") or link in inside or Path(link).is_file(), link
    assert "{{ code" not in text
    assert "???" not in text
    answers = text.partition("\n## Answers\n")[2]
    asked = page.read_text().count('??? note "Answer"')
    assert re.findall(r"^\*\*(\d+)\.\*\*", answers, re.M) == [str(number + 1) for number in range(asked)]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_the_cells_of_a_notebook_are_the_examples(page: Path):
    found = guide_notebooks.notebook(page.stem)
    cells = [cell.source for cell in found.cells if cell.cell_type == "code"]
    examples = re.findall(r"^```python\n(.*?)\n```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert cells == examples
    assert len(cells) >= 1
