"""Read the splits of a data module as training would, record by record, with what it drops and truncates.

The only module of this room that knows how data modules are built inside.
"""

import codecs
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.curate.context import Dropped, Kind, Row, Sample, Split
from align.data.columns import columns_of
from align.data.data_module import TokenData
from align.data.feedback_data import FeedbackData
from align.data.formats.chats import CHAT_FORMATS
from align.data.formats.fields import ChatRecord
from align.data.formats.prompt_records import PROMPT_FORMATS
from align.data.formats.record_format import FileFormat
from align.data.mixing import MixedOrder, WeightedSource
from align.data.pair_data import PromptData
from align.data.readers import BadRecords, ReadFields, Record, Source, find_sources
from align.data.response_data import ResponseData, between_prompts
from align.data.rows import best_fit_rows
from align.data.text_data import ChatData, RowData, TextData
from align.data.tokenize import encode_chat, encode_responses, unlike_whole_chat
from align.data.utf8_files import COMPRESSIONS
from align.io.progress import progress_bar
from align.tokenizer.chat_template import text_of
from align.tokenizer.prompts import with_system

_COUNTED = 20
"""Records beyond those read are counted, up to this many times as many"""
_COMPARED = 1000
"""Pairs of a split that are rendered again as whole chats, to compare"""
_CHARACTERS = 8_000_000
"""Characters of a document, and of all documents of a split, that are tokenized"""
_UTF8_BYTES = 1 << 28
_LOCAL_TEXT = ("jsonl", "json", "csv", "text")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Reader(NamedTuple):
    """How the records of a data module become samples.

    Attributes:
        kind: of the records.
        formats: candidates for detection.
        sample: content of a record -> a sample, or several, without source, location and fields.
    """

    kind: Kind
    formats: Sequence[Any]
    sample: Callable[[Any], Sample | list[Sample]]


class _Bad(BadRecords):
    """Keeps every bad record with its reason."""

    def __init__(self) -> None:
        super().__init__("skip")
        self.found: list[Dropped] = []

    def add(self, source: str, location: str, reason: str) -> None:
        """Keep a record that could not be parsed."""
        self.found.append(Dropped(source, location, reason, {}))


class _Part(NamedTuple):
    """What was read of a source with a weight; of all files where there are no weights.

    Attributes:
        samples: of its records.
        dropped: number of records that can't be used.
        further: number of records that were counted, but not read.
    """

    samples: list[Sample]
    dropped: int = 0
    further: int = 0

    @property
    def scale(self) -> float:
        """Ratio of all records to those read."""
        return 1 + self.further / max(1, len(self.samples) + self.dropped)


def kind_of(data: TokenData) -> Kind:
    """What the records of a data module are."""
    return _reader(data).kind


def read_splits(data: TokenData, *, limit: int) -> dict[str, Split]:
    """Read train, validation and test.

    Args:
        data: constructed; needs no set-up, and nothing is written to its cache.
        limit: records of each split that are tokenized; 0: all. The first ones of each file, as many of every file.

    Returns:
        dict: split -> its records; without splits that are not set.
    """
    given = {split: _files(sources) for split, sources in data._given.items() if sources}
    with progress_bar("reading data", None) as advance:
        found = {split: _read(data, split, files, limit or sys.maxsize, advance) for split, files in given.items()}
    if data.val_fraction and "train" in found:
        found |= _held_out(*found["train"], data)
    return {split: _with_rows(*found[split], data) for split in ("train", "validation", "test") if split in found}


def _files(given: Any) -> list[list[str]]:
    """The files of each source with a weight; of all sources together where they have none."""
    entries: list[Any] = [given] if isinstance(given, str) else given
    if isinstance(entries[0], WeightedSource):
        return [[one.files] if isinstance(one.files, str) else one.files for one in entries]
    return [list(entries)]


def _read(
    data: TokenData, split: str, given: Sequence[Sequence[str]], limit: int, advance: Callable[[int], None]
) -> tuple[Split, list[_Part]]:
    reader, columns = _reader(data), data._columns[split]
    dropped: list[Dropped] = []
    unreadable: list[str] = []
    not_utf8: dict[str, int] = {}
    try:
        sources = [find_sources(files) for files in given]
    except (OSError, ValueError) as error:
        return Split(split, (), unreadable=[str(error)]), [_Part([])]
    share = -(-limit // sum(map(len, sources)))
    parts = []
    characters = 0
    for group in sources:
        samples: list[Sample] = []
        further, before = 0, len(dropped)
        for source in group:
            if lines := _lines_not_utf8(source):
                not_utf8[source.name] = lines
            bad, file_format = _Bad(), FileFormat(getattr(data, "format", None), reader.formats)
            try:
                records = source.records(bad)
                for record in itertools.islice(records, share):
                    advance(1)
                    try:
                        samples += _samples(reader, file_format.of(record.fields), record, columns)
                        characters += len(samples[-1].text) if reader.kind == "texts" else 0
                    except (ValueError, RecursionError) as error:
                        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                        dropped.append(Dropped(record.source, record.location, reason, record.fields))
                    if characters > _CHARACTERS:
                        break
                if source.kind != "hub":
                    further += sum(1 for _ in itertools.islice(records, min(_COUNTED * share, sys.maxsize)))
            except (OSError, ValueError) as error:
                unreadable.append(str(error) if source.name in str(error) else f"{source.name}: {error}")
            dropped += bad.found
        parts.append(_Part(samples, len(dropped) - before, further))
    every, further = _samples_of(parts), sum(part.further for part in parts)
    total = len(every) + len(dropped) + further
    return Split(split, every, dropped, unreadable, not_utf8, records=total if further else None), parts


def _samples(reader: _Reader, format: Any, record: Record, columns: Sequence[str]) -> list[Sample]:
    fields = ReadFields(record.fields)
    found = reader.sample(format.read(fields))
    columns_of(fields, columns)
    here: dict[str, Any] = {"source": record.source, "location": record.location, "fields": record.fields}
    here["unread"] = tuple(fields.unread())
    return [replace(sample, **here) for sample in (found if isinstance(found, list) else [found])]


def _lines_not_utf8(source: Source) -> int:
    """Lines of a local text file that are not UTF-8; 0 for files that declare another encoding or are compressed."""
    if source.kind not in _LOCAL_TEXT or Path(source.name).suffix.lower() in COMPRESSIONS:
        return 0
    with open(source.name, "rb") as file:
        content = file.read(_UTF8_BYTES)
    if content.startswith(_UTF16):
        return 0
    try:
        content.decode()
    except UnicodeDecodeError:
        return sum(1 for line in content.split(b"\n") if not _is_utf8(line))
    return 0


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# What each data module makes of a record's content.


def _reader(data: TokenData) -> _Reader:
    if isinstance(data, ChatData):
        return _Reader("chats", CHAT_FORMATS, partial(_chat, data))
    if isinstance(data, ResponseData):
        kind: Kind = "feedback" if isinstance(data, FeedbackData) else "pairs"
        return _Reader(kind, data._formats, partial(_responses, data, itertools.count()))
    if isinstance(data, PromptData):
        return _Reader("prompts", PROMPT_FORMATS, partial(_prompt, data))
    if isinstance(data, TextData):
        return _Reader("texts", (), partial(_document, data))
    raise ValueError(f"data.class_path is {type(data).__name__}, whose records align doctor can't read")


def _new(prompt: str, responses: Sequence[str], rows: Sequence[Row], length: int, **more: Any) -> Sample:
    return Sample("", "", prompt, tuple(responses), tuple(rows), length, **more)


def _contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [text_of(message.get("content")) for message in messages]


def _document(data: TextData, text: str) -> Sample:
    text, clipped = text[:_CHARACTERS], max(0, len(text) - _CHARACTERS)
    ending = () if data.tokenizer.eos_id is None else (data.tokenizer.eos_id,)
    ids, _ = data.tokenizer.encode_to_array([text], prefix=data.tokenizer.opening_ids, suffix=ending)
    mask = np.ones(len(ids), bool)
    mask[:1] = False
    return _new("", [text], [Row(ids.astype(np.int64), mask)], len(ids), clipped=clipped)


def _chat(data: ChatData, chat: ChatRecord) -> Sample:
    messages = with_system(chat.messages, data.system_prompt)
    whole = encoded = encode_chat(messages, data.tokenizer, sys.maxsize, tools=chat.tools)
    if len(whole.ids) > data.context + 1:
        encoded = encode_chat(messages, data.tokenizer, data.context + 1, tools=chat.tools)
    lost = encoded.truncation
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return _new(
        "\n".join(_contents(messages[:last])),
        _contents([message for message in messages if message["role"] == "assistant"]),
        [Row(encoded.ids, encoded.mask)],
        len(whole.ids),
        response_tokens=(int(whole.mask.sum()),),
        roles=tuple(message["role"] for message in messages),
        truncated_prompt=lost.truncated_prompt_tokens,
        truncated_response=lost.truncated_response_tokens,
        lost_end=lost.responses_without_end,
        unrendered=encoded.dropped,
        unlike=encoded.unlike,
    )


def _responses(data: ResponseData, numbers: Iterator[int], content: Any) -> list[Sample]:
    samples = []
    for prompt, responses, tools, encoded, label in data._encode(content):
        whole = encode_responses(prompt, responses, data.tokenizer, sys.maxsize, tools=tools)
        compared = next(numbers) < _COMPARED
        unlike = unlike_whole_chat(prompt, responses[0], whole, data.tokenizer, tools=tools) if compared else None
        lost = encoded.truncation
        samples.append(
            _new(
                "\n".join(_contents(prompt)),
                responses,
                [_response_row(encoded.prompt, response) for response in encoded.responses],
                len(whole.prompt) + max(map(len, whole.responses)),
                response_tokens=tuple(map(len, whole.responses)),
                roles=tuple(message["role"] for message in prompt),
                truncated_prompt=lost.truncated_prompt_tokens,
                truncated_response=lost.truncated_response_tokens,
                lost_end=lost.responses_without_end,
                unrendered=encoded.dropped,
                unlike=unlike,
                label=label,
            )
        )
    return samples


def _response_row(prompt: np.ndarray, response: np.ndarray) -> Row:
    ids = np.concatenate([prompt, response])
    return Row(ids, np.arange(len(ids)) >= len(prompt))


def _prompt(data: PromptData, chat: ChatRecord) -> Sample:
    messages = with_system(chat.messages, data.system_prompt)
    rendered = data.tokenizer.render_chat(messages, tools=chat.tools, add_generation_prompt=True)
    data._refuse_long(len(rendered.ids))
    ids = np.array(rendered.ids, np.int64)
    return _new(
        "\n".join(_contents(messages)),
        (),
        [Row(ids, np.zeros(len(ids), bool))],
        len(ids),
        roles=tuple(message["role"] for message in messages),
        unrendered=rendered.dropped,
    )


# Splits and rows.


def _held_out(train: Split, parts: list[_Part], data: TokenData) -> dict[str, tuple[Split, list[_Part]]]:
    """Train and validation, as ``val_fraction`` divides the records of each source, or its only document."""
    kept, held_out, unreadable = [], [], []
    for samples, dropped, further in parts:
        first, second = samples[:], []
        if len(samples) > 1:
            border = len(samples) - min(len(samples) - 1, max(1, round(len(samples) * data.val_fraction)))
            if isinstance(data, ResponseData):
                border = between_prompts([sample.prompt for sample in samples].__getitem__, border, len(samples))
            first, second = samples[:border], samples[border:]
        elif samples and isinstance(data, TextData):
            first, second = ([half] for half in _halves(samples[0], data))
        elif samples:
            unreadable.append(
                f"{samples[0].source}: only 1 record, of which data.init_args.val_fraction ({data.val_fraction}) can't "
                "hold out any"
            )
        share = round(further * data.val_fraction)
        kept.append(_Part(first, dropped, further - share))
        held_out.append(_Part(second, 0, share))
    records = None if train.records is None else round(train.records * data.val_fraction)
    rest = None if records is None else (train.records or 0) - records
    return {
        "train": (replace(train, samples=_samples_of(kept), records=rest), kept),
        "validation": (Split("validation", _samples_of(held_out), (), unreadable, records=records), held_out),
    }


def _samples_of(parts: Sequence[_Part]) -> list[Sample]:
    return [sample for part in parts for sample in part.samples]


def _halves(sample: Sample, data: TextData) -> tuple[Sample, Sample]:
    """A document divided by bytes."""
    (row,), text = sample.rows, sample.responses[0]
    filled = np.cumsum(data.tokenizer.token_bytes[row.ids])
    end = int(np.searchsorted(filled, int(filled[-1] * (1 - data.val_fraction)))) + 1
    parts = []
    for part in (slice(None, end), slice(end, None)):
        ids = row.ids[part]
        responses = (data.tokenizer.decode(ids),) if len(sample.responses) == 1 else (text,)
        parts.append(replace(sample, responses=responses, rows=(Row(ids, row.mask[part]),), length=len(ids)))
    return parts[0], parts[1]


def _with_rows(split: Split, parts: list[_Part], data: TokenData) -> Split:
    """The split with the rows and tokens of an epoch, where they are not those of its samples."""
    if not split.samples:
        return split
    counts = [_rows(part.samples, data, by_prompt=split.name == "train" and _by_prompt(data)) for part in parts]
    if split.name == "train" and data._mixture is not None and all(count.rows for count in counts):
        sizes = tuple(round(count.rows * part.scale) for count, part in zip(counts, parts, strict=True))
        order = MixedOrder(data._mixture, sizes, batch_size=data.batch_size, seed=data.seed, ends=data.epoch)
        passes = order.passes() * [part.scale for part in parts] / split.scale
        computed = sum(count.tokens * times for count, times in zip(counts, passes.tolist(), strict=True))
        return replace(split, rows=round(len(order) * data.batch_size / split.scale), computed=round(computed))
    rows, tokens = (sum(column) for column in zip(*counts, strict=True))
    return replace(
        split,
        rows=None if rows == len(split.samples) else rows,
        computed=None if tokens == split.tokens else tokens,
    )


class _Counts(NamedTuple):
    """Rows, and tokens that the network computes, of one pass."""

    rows: int
    tokens: int


def _by_prompt(data: TokenData) -> bool:
    return bool(getattr(data, "by_prompt", False))


def _rows(samples: Sequence[Sample], data: TokenData, *, by_prompt: bool) -> _Counts:
    """The counts of one source, as no row has tokens of two."""
    tokens = sum(len(row.ids) for sample in samples for row in sample.rows)
    if not samples:
        return _Counts(0, 0)
    if isinstance(data, RowData) and data.packing != "none":
        bounds = np.cumsum([0, *(len(sample.rows[0].ids) for sample in samples)])
        if data.packing == "wrap":
            return _Counts(-(-(int(bounds[-1]) - 1) // data.context), tokens)
        return _Counts(len(best_fit_rows(bounds, data.context + 1)), tokens)
    if isinstance(data, ResponseData):
        groups = itertools.groupby(samples, key=lambda sample: sample.prompt if by_prompt else id(sample))
        computed = [_computed(list(group)) for _, group in groups]
        return _Counts(len(computed), sum(computed))
    return _Counts(len(samples), tokens)


def _computed(pairs: Sequence[Sample]) -> int:
    """Tokens of one prompt and of the distinct responses to it."""
    lengths = {text: int(row.mask.sum()) for pair in pairs for text, row in zip(pair.responses, pair.rows, strict=True)}
    return int((~pairs[0].rows[0].mask).sum()) + sum(lengths.values())
