"""MkDocs hook: a page of docs/guide/ includes the project's code by file and name.

A line ``{{ code("align/objectives/preference.py", "DPO.__call__") }}`` becomes the source of that function, method or
class as it is in the repository, under a link to its file. Nothing is pasted, so a page can't show code that has
changed; a name that no longer exists stops the build, and a test.
"""

from __future__ import annotations

import ast
import posixpath
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tests need source() and expand() without mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REFERENCE = re.compile(r'^\{\{ code\("(?P<path>[^"]+)", "(?P<name>[^"]+)"\) \}\}$', re.MULTILINE)
"""A line that includes code"""


def source(path: Path, name: str) -> str:
    """The source of a function, method or class.

    Args:
        path: a Python file.
        name: as in ``Class.method``.

    Returns:
        str: decorators and docstring included, without the indentation of a method.

    Raises:
        ValueError: the file doesn't exist, or has nothing of that name.
    """
    if not path.is_file():
        raise ValueError(f"code: {path} does not exist; correct the path of the reference")
    text = path.read_text(encoding="utf-8")
    scope: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [node for node in ast.iter_child_nodes(scope) if getattr(node, "name", None) == part]
        if not found:
            raise ValueError(f"code: {path} has no {name}; correct the name of the reference")
        scope = found[-1]
    assert isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    first = min([scope.lineno, *(decorator.lineno for decorator in scope.decorator_list)])
    return textwrap.dedent("\n".join(text.split("\n")[first - 1 : scope.end_lineno]))


def expand(markdown: str, here: str, root: Path) -> str:
    """Replace the references of a page.

    Args:
        markdown: the page.
        here: its path within the site, where files outside docs/ keep theirs.
        root: of the repository.

    Raises:
        ValueError: a reference leads nowhere.
    """

    def block(match: re.Match[str]) -> str:
        path, name = match["path"], match["name"]
        link = posixpath.relpath(path, posixpath.dirname(here) or ".")
        return f"[`{path}`]({link}), `{name}`:\n\n```python\n{source(root / path, name)}\n```"

    return REFERENCE.sub(block, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that references name, to be downloaded."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    named = {match["path"] for page in files.documentation_pages() for match in REFERENCE.finditer(page.content_string)}
    for path in sorted(named):
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the references; last, because brackets of code are no links for site_pages.py to rewrite."""
    return expand(markdown, page.file.src_uri, Path(config.config_file_path).parent)
