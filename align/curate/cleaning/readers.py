"""Readers that datatrove lacks: plain text and source files, JSON lines, Wikipedia's dumps, the body of a book."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.utils.typeshelper import StatHints

_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.MULTILINE)


class TextFiles(BaseDiskReader):
    """Plain text or source code: every file is a document, its path the id. Files that are not UTF-8 are left out."""

    name = "text files"

    def __init__(self, data_folder: str, suffixes: list[str], limit: int = -1) -> None:
        """What to read.

        Args:
            data_folder: folder, or a URL that fsspec reads; folders in it are searched too.
            suffixes: of the files, such as [.txt, .md]; compressed files have the compression's after it: .txt.gz.
            limit: files to read per task; -1: all.
        """
        super().__init__(data_folder, limit=limit)
        self.suffixes = tuple(suffixes)

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The document of one file."""
        if not filepath.endswith(self.suffixes):
            return
        with self.track_time(), self.data_folder.open(filepath, "rb", compression="infer") as file:
            try:
                text = file.read().decode()
            except UnicodeDecodeError:
                self.stat_update("dropped_not_utf8")
                return
            document = (
                self.get_document_from_dict({"text": text, "id": filepath}, filepath, 0) if text.strip() else None
            )
        if document:
            yield document


class JsonLines(BaseDiskReader):
    """Records of JSON lines. Lines that hold no JSON object, and records without text, are left out and counted.

    datatrove's JsonlReader counts neither, and leaves out the rest of a file after a byte that is not UTF-8.
    """

    name = "JSON lines"

    def __init__(
        self,
        data_folder: str,
        glob_pattern: str = "**/*.jsonl*",
        text_key: str = "text",
        id_key: str = "id",
        limit: int = -1,
    ) -> None:
        """What to read.

        Args:
            data_folder: folder, or a URL that fsspec reads.
            glob_pattern: of the files, compressed or not.
            text_key: field with the text.
            id_key: field with the id; where it is missing, the id is the file and the number of the line.
            limit: records to read per task; -1: all.
        """
        super().__init__(data_folder, limit=limit, text_key=text_key, id_key=id_key, glob_pattern=glob_pattern)

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The records of one file."""
        with self.data_folder.open(filepath, "rb", compression="infer") as file:
            for number, line in enumerate(file):
                with self.track_time():
                    document = self._document(line, filepath, number) if line.strip() else None
                if document:
                    yield document

    def _document(self, line: bytes, filepath: str, number: int) -> Document | None:
        try:
            record = json.loads(line)
        except ValueError:  # a byte that is not UTF-8 is one too
            record = None
        if not isinstance(record, dict):
            self.stat_update("dropped_not_json")
            return None
        if not isinstance(text := record.get(self.text_key), str) or not text.strip():
            self.stat_update("dropped_no_text")
            return None
        document: Document = self.get_document_from_dict(record, filepath, number)
        return document


class WikipediaDump(BaseDiskReader):
    """Articles of Wikipedia's XML dumps (``*-pages-articles*.xml.bz2``) as plain text.

    Redirects and pages outside the main namespace are left out. Markup goes through mwparserfromhell; tables,
    references, files and categories are dropped.
    """

    name = "Wikipedia"
    _requires_dependencies = ["mwparserfromhell"]

    def __init__(self, data_folder: str, glob_pattern: str = "*.xml.bz2", limit: int = -1) -> None:
        """What to read.

        Args:
            data_folder: folder, or a URL that fsspec reads.
            glob_pattern: of the dump's files.
            limit: articles to read per task; -1: all.
        """
        super().__init__(data_folder, glob_pattern=glob_pattern, limit=limit)

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The articles of one file."""
        with self.data_folder.open(filepath, "rb", compression="infer") as file:
            for number, page in enumerate(_pages(file)):
                with self.track_time():
                    document = None
                    if page["ns"] == "0" and not page["redirect"]:
                        fields = {"text": plain_text(page["text"]), "id": page["id"], "title": page["title"]}
                        document = self.get_document_from_dict(fields, filepath, number)
                if document:
                    yield document


def _pages(file: Any) -> Iterator[dict[str, Any]]:
    """Pages of a dump, one at a time."""
    steps = iter(ElementTree.iterparse(file, events=("start", "end")))
    _, root = next(steps)
    for event, element in steps:
        if event == "end" and _local(element.tag) == "page":
            parts = {_local(part.tag): part for part in element.iter()}
            yield {
                "redirect": "redirect" in parts,
                "id": next(part.text for part in element if _local(part.tag) == "id"),
                **{name: parts[name].text or "" for name in ("ns", "title", "text")},
            }
            root.clear()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def plain_text(markup: str) -> str:
    """The text of a wiki page.

    Args:
        markup: in MediaWiki's language.
    """
    import mwparserfromhell

    code = mwparserfromhell.parse(markup)
    for link in code.filter_wikilinks():
        if str(link.title).partition(":")[0].strip().lower() in ("file", "image", "category"):
            _drop(code, link)
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() in ("ref", "table", "gallery", "math")):
        _drop(code, tag)
    return re.sub(r"\n{3,}", "\n\n", code.strip_code()).strip()


def _drop(code: Any, node: Any) -> None:
    with contextlib.suppress(ValueError):  # it went with the node that contained it
        code.remove(node)


class BookText(PipelineStep):
    """What stands between Project Gutenberg's header and footer; other texts pass unchanged."""

    type = "formatter"
    name = "book text"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents without the notes around them."""
        for document in data:
            self.stat_update(StatHints.total)
            with self.track_time():
                start, end = _START.search(document.text), _END.search(document.text)
                body = document.text[start.end() if start else 0 : end.start() if end else None]
                document.text = body.strip() if start or end else document.text
            yield document
