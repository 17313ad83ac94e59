"""The records of evaluation files that a command line names: documents, problems, pairs."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.evaluate.problems import Problem
    from align.evaluate.reward_pairs import RankedPair


def read_texts(files: Sequence[str]) -> list[str]:
    """Documents, in order.

    Args:
        files: JSONL of ``{"text": ...}``, or .txt; what ``data.init_args.train`` takes.

    Raises:
        ValueError: a record has no text; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    from align.data.formats.texts import Text
    from align.data.readers import BadRecords, find_sources
    from align.data.tokenize import encode_records

    sources, bad = find_sources([*files]), BadRecords("stop", hint="")
    return list(encode_records(sources, bad, format=Text(), formats=(), encode=str))


def read_problems(files: str | Sequence[str]) -> list["Problem"]:
    """Programs to write, in the format of HumanEval or MBPP.

    Args:
        files: of records, or Hub ids; what ``data.init_args.train`` takes.

    Raises:
        ValueError: a record has another form; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    from align.data.readers import BadRecords, find_sources
    from align.evaluate.problems import BadProblemError, problems_of

    bad = BadRecords("stop", hint="")
    records = [record for source in find_sources(files) for record in source.records(bad)]
    try:
        problems = problems_of([record.fields for record in records])
    except BadProblemError as error:
        bad.add(records[error.number].source, records[error.number].location, str(error))
        problems = []
    if not problems:
        raise ValueError(f"{files} holds no problems")
    return problems


def read_ranked_pairs(file: str, *, limit: int | None = None) -> list["RankedPair"]:
    """Pairs whose order is known, in any format of preference pairs.

    Args:
        file: what ``data.init_args.train`` takes; ``subset`` of a record is the category.
        limit: number of pairs to read; None: all.

    Raises:
        ValueError: a record is no pair; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    from align.data.formats.pairs import PAIR_FORMATS
    from align.data.formats.record_format import FileFormat
    from align.data.readers import BadRecords, find_sources
    from align.evaluate.reward_pairs import RankedPair
    from align.tokenizer.prompts import as_prompt

    bad, pairs = BadRecords("stop", hint=""), []
    for source in find_sources(file):
        file_format = FileFormat(None, PAIR_FORMATS)
        for record in islice(source.records(bad), limit):
            try:
                pair = file_format.of(record.fields).read(record.fields)
                category = record.fields.get("subset") or ""
                if not isinstance(category, str):
                    raise ValueError(f"field 'subset' must be a text, found {category!r}")
                pairs.append(RankedPair(as_prompt(pair.prompt), pair.chosen, pair.rejected, category))
            except ValueError as error:
                bad.add(record.source, record.location, str(error))
    if not pairs:
        raise ValueError(f"{file} holds no pairs")
    return pairs[:limit]
