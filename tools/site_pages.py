"""MkDocs hook: what the pages of docs/ link to outside of docs/ becomes part of the site.

Links are written for readers of the repository: ``../benchmarks/README.md`` from a page of docs/. Here a Markdown file
outside docs/ becomes a page if the nav names it, any other linked file is copied to be downloaded, and the links are
rewritten to match. A file keeps its path, so only links that cross the border of docs/ change. A link to a folder is
reduced to its text.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the nav that lie outside docs/, and the files that any page links to."""
    root = Path(config.config_file_path).parent
    for uri in _leaves(config.nav):
        if files.get_file_from_path(uri) is None and (root / uri).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(root / uri)))
    for page in list(files.documentation_pages()):
        for match in _LINK.finditer(_prose(page.content_string)):
            target = _target(page.src_uri, match["target"], root)
            if target and files.get_file_from_path(target) is None and (root / target).is_file():
                files.append(File.generated(config, target, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links that cross the border of docs/."""
    root = Path(config.config_file_path).parent
    here = page.file.src_uri

    def rewrite(match: re.Match[str]) -> str:
        target = _target(here, match["target"], root)
        if target is None:
            return match[0]
        if (root / target).is_dir():
            return match["text"]
        _, mark, anchor = match["target"].partition("#")
        return f"[{match['text']}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{mark}{anchor})"

    fences = [match.span() for match in _FENCE.finditer(markdown)]
    return _LINK.sub(
        lambda match: match[0] if any(a <= match.start() < b for a, b in fences) else rewrite(match), markdown
    )


def _target(here: str, link: str, root: Path) -> str | None:
    """The path within the site of what a relative link means, if the link crosses the border of docs/."""
    path = link.partition("#")[0]
    if not path or "://" in link or link.startswith(("mailto:", "/")):
        return None
    source = here if _is_outside(here, root) else f"docs/{here}"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target.startswith("docs/") and source == here:
        return target.removeprefix("docs/")
    return None if target.startswith(("docs/", "..")) else target


def _is_outside(uri: str, root: Path) -> bool:
    return not (root / "docs" / uri).is_file()


def _prose(markdown: str) -> str:
    return _FENCE.sub("", markdown)


def _leaves(nav: Any) -> Iterator[str]:
    """Every page that the nav names."""
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []:
        if isinstance(item, str):
            yield item
        else:
            yield from _leaves(item)
