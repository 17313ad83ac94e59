"""The guide as one PDF: ``python tools/guide_pdf.py [build/guide.pdf]``, or ``make book``.

Chapters come in the order of docs/guide/index.md, with the project's code included as on the site. Pandoc turns them
into Typst's language, Typst sets them; both are Python packages (extra ``book``), so nothing else has to be installed.

- Links between chapters lead to the chapter; links to other pages and files become their text.
- Answers, which are folded on the site, stand at the end of their chapter.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from guide_code import expand

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/guide"

_CHAPTER = re.compile(r"^\| \d+\. \[[^\]]+\]\((?P<name>\w+)\.md\)", re.MULTILINE)
ANSWER = re.compile(r'^\?\?\? note "Answer"\n\n(?P<text>(?:(?:    .*)?\n)+?)(?=\S|\Z)', re.MULTILINE)
_EXERCISE = re.compile(r"^\*\*(?P<number>\d+)\.\*\*", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])+)\]\((?P<to>[^)\s]+)\)")
_IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<to>[^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

_READ = "commonmark+pipe_tables+attributes+strikeout"
_STYLE = """
#set page(paper: "a4", margin: (x: 2.4cm, y: 2.6cm), numbering: "1")
#set text(size: 10.5pt)
#set par(justify: true)
#set heading(numbering: none)
#show heading.where(level: 1): it => { pagebreak(weak: true); block(below: 1.2em, text(size: 1.5em, it.body)) }
#show raw.where(block: true): set text(size: 7pt)
#show raw.where(block: true): block.with(fill: luma(245), inset: 7pt, radius: 3pt, width: 100%)
#show table: set text(size: 9pt)
#show table: set par(justify: false)
#set table(stroke: 0.4pt + luma(200), inset: 5pt)
#show figure: set block(breakable: true)
#show link: set text(fill: rgb("#2a5db0"))
#let horizontalrule = line(length: 100%, stroke: 0.4pt + luma(200))
#align(center + horizon)[
  #text(size: 26pt, weight: "bold")[The guide]
  #v(0.6em)
  #text(size: 13pt)[From bytes and BPE to an aligned, compared and exported language model]
  #v(0.6em)
  #text(size: 11pt)[align VERSION]
]
#pagebreak()
#outline(depth: 1, title: [Chapters])
"""


def chapters() -> list[str]:
    """Names of the chapters, in order."""
    return [match["name"] for match in _CHAPTER.finditer((GUIDE / "index.md").read_text(encoding="utf-8"))]


def chapter(name: str) -> str:
    """A chapter as Markdown that needs nothing of the site.

    Args:
        name: its file in docs/guide/, without the suffix.
    """
    text = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    text = _with_answers_last(expand(text, f"guide/{name}.md", ROOT))
    text = rewritten(text, chapter=lambda other: f"#{other}", image=lambda path: (GUIDE / path).as_posix())
    heading, _, rest = text.partition("\n")
    return f"{heading} {{#{name}}}\n{rest}"


def rewritten(text: str, *, chapter: Callable[[str], str], image: Callable[[str], str]) -> str:
    """A chapter whose links lead somewhere outside the site too; those to other pages and files become their text.

    Args:
        text: Markdown.
        chapter: from a chapter's name to where links to it lead.
        image: from a path in docs/guide/ to where the image is.
    """
    known = set(chapters())

    def link(match: re.Match[str]) -> str:
        to = match["to"]
        if to.startswith(("http://", "https://")):
            return match.group()
        name = to.partition("#")[0].removesuffix(".md")
        return f"[{match['text']}]({chapter(name)})" if name in known else match["text"]

    def prose(piece: str) -> str:
        piece = _LINK.sub(link, piece)
        return _IMAGE.sub(lambda match: f"![{match['text']}]({image(match['to'])})", piece)

    # Brackets in code are no links.
    return "".join(prose(piece) if is_prose else piece for is_prose, piece in _pieces(text))


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Prose (True) and fenced code (False), in turn."""
    found, end = [], 0
    for match in _CODE.finditer(text):
        found += [(True, text[end : match.start()]), (False, match.group())]
        end = match.end()
    return [*found, (True, text[end:])]


def answer(match: re.Match[str]) -> str:
    """The text of a match of ``ANSWER``, without the indentation that the site needs."""
    return "\n".join(line.removeprefix("    ") for line in match["text"].strip("\n").split("\n"))


def _with_answers_last(text: str) -> str:
    """The chapter with its answers, numbered as its exercises, under a heading of their own."""
    answers = []

    def take(match: re.Match[str]) -> str:
        number = [found["number"] for found in _EXERCISE.finditer(text, 0, match.start())][-1]
        answers.append(f"**{number}.** {answer(match)}")
        return ""

    text = ANSWER.sub(take, text)
    return text.rstrip() + "\n\n## Answers\n\n" + "\n\n".join(answers) + "\n" if answers else text


def typst_source() -> str:
    """The whole book in Typst's language."""
    import pypandoc

    sys.path.insert(0, str(ROOT))
    from align import __version__

    markdown = "\n\n".join(chapter(name) for name in chapters())
    body = pypandoc.convert_text(markdown, "typst", format=_READ, extra_args=["--wrap=preserve"])
    return _STYLE.replace("VERSION", __version__) + body


def main() -> None:
    """Write the PDF."""
    import typst

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build/guide.pdf")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "guide.typ")
        source.write_text(typst_source(), encoding="utf-8")
        typst.compile(str(source), output=str(out), root="/")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
