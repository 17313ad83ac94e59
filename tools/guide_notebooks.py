"""The guide's chapters as notebooks: ``python tools/guide_notebooks.py [build/notebooks]``, or ``make notebooks``.

Jupytext (extra ``book``) turns each chapter into one. Examples are cells that run; the project's code, which needs the
file around it, is text; what an example printed is left out, since the cell prints it.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from guide_code import REFERENCE, expand
from guide_pdf import ANSWER, GUIDE, ROOT, answer, chapters, rewritten

_PRINTED = re.compile(r"(^```python\n.*?^```\n)\n```text\n.*?^```\n", re.MULTILINE | re.DOTALL)


def notebook(name: str) -> Any:
    """A chapter as a notebook.

    Args:
        name: its file in docs/guide/, without the suffix.
    """
    import jupytext

    text = _PRINTED.sub(r"\1", (GUIDE / f"{name}.md").read_text(encoding="utf-8"))
    text = REFERENCE.sub(lambda match: _as_text(expand(match.group(), f"guide/{name}.md", ROOT)), text)
    text = ANSWER.sub(_folded, rewritten(text, chapter=lambda other: f"{other}.ipynb", image=_from_the_repository))
    found = jupytext.reads(text, fmt="md")
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return found


def _as_text(block: str) -> str:
    """Included code under a fence that is no cell."""
    return block.replace("```python\n", "```py\n", 1)


def _folded(match: re.Match[str]) -> str:
    return f"<details><summary>Answer</summary>\n\n{answer(match)}\n\n</details>\n\n"


def _from_the_repository(path: str) -> str:
    return f"../../docs/guide/{path}"


def main() -> None:
    """Write the notebooks."""
    import jupytext

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build/notebooks")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in chapters():
        jupytext.write(notebook(name), out / f"{name}.ipynb")
    print(f"{out}: {len(chapters())} notebooks")


if __name__ == "__main__":
    main()
