"""The token ids of a corpus on disk: written once, document by document, then memory-mapped by all processes.

A corpus is a directory of flat files, named by a hash of everything that decides its content: the bytes of the source
files, the tokenizer, the settings, and the version of this code. It gets its name only once it is complete.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from align.io.atomic import creating_directory
from align.tokenizer.prompts import Columns, Prompt

VERSION = 5
"""Increased whenever the same input gives other tokens, so that no old cache is read."""


def corpus_key(**decides: Any) -> str:
    """Hash of what decides a corpus, given as JSON values."""
    text = json.dumps({"version": VERSION} | decides, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. It is pickled as its path, so that loader workers map the files themselves."""

    path: Path
    """Its directory"""
    ids: np.ndarray
    """``[N]`` uint16 or uint32, token ids of all documents, concatenated"""
    offsets: np.ndarray
    """``[documents + 1]`` int64: document d is ``ids[offsets[d]:offsets[d + 1]]``"""
    target_mask: np.ndarray | None
    """``[N]`` bool, True where the token is a target; None: all tokens are"""
    prompt_bytes: np.ndarray | None
    """JSON of the prompts and columns of all records, concatenated; None: not stored"""
    prompt_offsets: np.ndarray | None
    """``[records + 1]`` int64: the JSON of record r is ``prompt_bytes[prompt_offsets[r]:prompt_offsets[r + 1]]``"""
    labels: np.ndarray | None
    """``[records]`` bool, the label of each record; None: not stored"""
    meta: Mapping[str, Any]
    """Counts and report lines from when it was written"""

    @classmethod
    def open(cls, path: Path) -> "Corpus":
        """Map the files of a corpus.

        Raises:
            ValueError: a file does not have the length recorded when it was written.
        """
        meta = json.loads((path / "meta.json").read_text())

        def mapped(name: str, dtype: str, length: int) -> np.ndarray:
            file = path / name
            size, expected = file.stat().st_size, length * np.dtype(dtype).itemsize
            if size != expected:
                raise ValueError(f"{file}: the cache is damaged ({size} bytes instead of {expected}); delete {path}")
            return np.memmap(file, dtype=dtype, mode="r")

        return cls(
            path=path,
            ids=mapped("ids.bin", meta["dtype"], meta["tokens"]),
            offsets=mapped("offsets.bin", "int64", meta["documents"] + 1),
            target_mask=mapped("target_mask.bin", "bool", meta["tokens"]) if meta["targets"] is not None else None,
            prompt_bytes=mapped("prompts.bin", "uint8", meta["prompt_bytes"]) if "prompt_bytes" in meta else None,
            prompt_offsets=mapped("prompt_offsets.bin", "int64", meta["prompts"] + 1) if "prompts" in meta else None,
            labels=mapped("labels.bin", "bool", meta["labels"]) if "labels" in meta else None,
            meta=meta,
        )

    @property
    def identity(self) -> str:
        """What decides the tokens: the name of the corpus, without the columns that are stored beside them."""
        identity: str = self.meta["identity"]
        return identity

    def prompt(self, record: int) -> tuple[Prompt, Columns]:
        """The stored prompt of a record, and its columns."""
        assert self.prompt_bytes is not None
        assert self.prompt_offsets is not None
        first, last = self.prompt_offsets[record : record + 2]
        prompt, columns = json.loads(bytes(self.prompt_bytes[first:last]))
        return prompt, columns

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, not the tokens."""
        return Corpus.open, (self.path,)


class CorpusWriter:
    """Context manager that writes a corpus to a temporary directory and renames it at the end.

    If two processes write the same corpus at once, the first to finish publishes it, and the other's identical copy is
    removed. After an error nothing is left.
    """

    def __init__(
        self, path: Path, *, vocab_size: int, masked: bool, with_prompts: bool = False, with_labels: bool = False
    ) -> None:
        """Prepare to write ``path``.

        Args:
            path: directory of the corpus.
            vocab_size: decides between uint16 and uint32.
            masked: whether a mask of targets is written.
            with_prompts: whether the prompt of each record is written.
            with_labels: whether a label of each record is written.
        """
        self.path = path
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self.tokens = self.documents = self.targets = self.prompts = self.prompt_bytes = self.labels = 0
        self._masked, self._with_prompts, self._with_labels = masked, with_prompts, with_labels
        self.meta: dict[str, Any] = {}
        """Further values for ``meta.json``"""

    def __enter__(self) -> "CorpusWriter":
        """Open the files."""
        self._publishing = creating_directory(self.path)
        self._draft = self._publishing.__enter__()
        names = ["ids", "offsets"] + (["target_mask"] if self._masked else [])
        names += ["prompts", "prompt_offsets"] if self._with_prompts else []
        names += ["labels"] if self._with_labels else []
        self._files = {name: open(self._draft / f"{name}.bin", "wb") for name in names}  # noqa: SIM115
        for name in {"offsets", "prompt_offsets"} & set(names):
            self._files[name].write(np.zeros(1, np.int64).data)
        return self

    def append(
        self,
        ids: Sequence[int] | np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        target_mask: np.ndarray | None = None,
        *,
        prompt: Prompt | None = None,
        label: bool | None = None,
        columns: Columns | None = None,
    ) -> None:
        """Write documents.

        Args:
            ids: ``[n]`` integer token ids.
            lengths: ``[documents]`` tokens of each document, n in total.
            target_mask: ``[n]`` bool, True on targets; required if ``masked``.
            prompt: of the record with these documents; required if ``with_prompts``.
            label: of the record with these documents; required if ``with_labels``.
            columns: of the record, stored beside the prompt; values as JSON has them.
        """
        self._files["ids"].write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self._files["offsets"].write((self.tokens + np.cumsum(lengths, dtype=np.int64)).data)
        if self._masked:
            assert target_mask is not None
            self._files["target_mask"].write(np.ascontiguousarray(target_mask, dtype=bool).data)
            self.targets += int(target_mask.sum())
        if self._with_prompts:
            assert prompt is not None
            data = json.dumps([prompt, columns or {}]).encode()
            self._files["prompts"].write(data)
            self.prompt_bytes += len(data)
            self.prompts += 1
            self._files["prompt_offsets"].write(np.array([self.prompt_bytes]).data)
        if self._with_labels:
            assert label is not None
            self._files["labels"].write(bytes([label]))
            self.labels += 1
        self.tokens += len(ids)
        self.documents += len(lengths)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the corpus, or remove it after an error."""
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                meta = {"dtype": self.dtype, "tokens": self.tokens, "documents": self.documents}
                meta["targets"] = self.targets if self._masked else None
                if self._with_prompts:
                    meta |= {"prompts": self.prompts, "prompt_bytes": self.prompt_bytes}
                if self._with_labels:
                    meta["labels"] = self.labels
                (self._draft / "meta.json").write_text(json.dumps(meta | self.meta))
        except BaseException as failure:
            kind, error, trace = type(failure), failure, failure.__traceback__
            raise
        finally:
            self._publishing.__exit__(kind, error, trace)
