"""One reader for all files: compression, byte-order marks and encodings change no record, and no record is lost."""

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naming import names, naming

from align.cli.prompt_file import read_prompts
from align.data import json_records
from align.data.readers import BadRecords, Source, find_sources
from align.data.text_data import TextData


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
ENCODE = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16-le": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


def as_csv(records, delimiter=","):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["text", "note"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


WRITE = {
    ".jsonl": lambda records: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
    ".ndjson": lambda records: "\r\n\r\n".join(map(json.dumps, records)),
    ".json": lambda records: json.dumps(records, ensure_ascii=False, indent=1),
    ".csv": as_csv,
    ".tsv": lambda records: as_csv(records, "\t"),
}


def write(file, records):
    suffix, compression = (file.suffixes + [""])[:2]
    file.write_bytes(COMPRESS[compression](WRITE[suffix](records).encode()))


def read(file, policy="stop"):
    (source,) = find_sources(str(file))
    bad = BadRecords(policy)
    return list(source.records(bad)), bad


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\r\n\t",\ufeff'), min_size=1, max_size=20)


@given(
    records=st.lists(st.fixed_dictionaries({"text": texts, "note": texts}), min_size=1, max_size=6),
    suffix=st.sampled_from(sorted(WRITE)),
    encoding=st.sampled_from(sorted(ENCODE)),
    compression=st.sampled_from(sorted(COMPRESS)),
)
def test_any_file_gives_the_same_records(records, suffix, encoding, compression):
    if encoding.startswith("utf-8") and suffix in (".csv", ".tsv"):  # JSON writes NUL as an escape
        records = [{name: text.replace("\0", " ") for name, text in record.items()} for record in records]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}{compression}"
        file.write_bytes(COMPRESS[compression](ENCODE[encoding](WRITE[suffix](records))))
        found, _ = read(file)
        assert [record.fields for record in found] == records


lines = st.one_of(
    texts.map(lambda text: json.dumps({"text": text})),
    st.sampled_from(["{}", '{"text": ""}', '{"text": 1}', "[1]", "{", '{"text": "\\ud800"}', "[" * 5000, "1" * 5000]),
)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(lines, min_size=1, max_size=6), data=st.data())
def test_every_record_is_used_or_bad(tokenizer_dir, module_path, lines, data):
    """In any file that can hold it, and the corpus is the same."""
    fine = [json.loads(line)["text"] for line in lines if len(line) < 500 and _is_usable(line)] or ["a"]
    lines = [*lines, json.dumps({"text": fine[0]})]
    suffix = data.draw(st.sampled_from(sorted(COMPRESS)))
    encoding = data.draw(st.sampled_from(sorted(ENCODE)))
    corpora = []
    for name, encode, compress in (
        ("a.jsonl", str.encode, bytes),
        (f"b.jsonl{suffix}", ENCODE[encoding], COMPRESS[suffix]),
    ):
        file = module_path / name
        file.write_bytes(compress(encode("\n".join(lines))))
        loaded = TextData(tokenizer_dir, str(file), cache_dir=str(module_path / "cache"), on_bad_record="skip")
        corpora.append(loaded._corpus("train"))
        counts = corpora[-1].meta["records"]
        assert counts["used"] + counts["bad"] == len(lines)
        assert counts["used"] == len(corpora[-1].offsets) - 1
    assert corpora[0].ids.tolist() == corpora[1].ids.tolist()
    assert corpora[0].offsets.tolist() == corpora[1].offsets.tolist()


def _is_usable(line):
    try:
        text = json.loads(line)["text"]
        return bool(text.encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


@pytest.mark.parametrize("compression", COMPRESS)
def test_line_numbers(tmp_path, compression):
    """Blank lines and line ends of Windows count; so do lines inside a value of a CSV."""
    file = tmp_path / f"a.jsonl{compression}"
    file.write_bytes(COMPRESS[compression](b'\xef\xbb\xbf\r\n{"a": 1}\r\n\r\n{"a": 2}\r\n{\r\n'))
    found, bad = read(file, "skip")
    assert [(record.location, record.fields["a"]) for record in found] == [("line 2", 1), ("line 4", 2)]
    assert names(bad.first, file, 5)
    file = tmp_path / f"a.csv{compression}"
    file.write_bytes(COMPRESS[compression](b'\na,b\n\n"1\n2",3\n4\n5,6,7\n'))
    found, bad = read(file, "skip")
    assert [(record.location, record.fields) for record in found] == [
        ("line 4", {"a": "1\n2", "b": "3"}),
        ("line 6", {"a": "4", "b": None}),
    ]
    assert names(bad.first, file, 7, 3, 2)


def test_a_list_with_bad_records_in_it(tmp_path):
    """Values that can't be records are left out, wherever they end: brackets in strings are no brackets."""
    values = [
        '{"a": 1}',
        "[" * 2000 + r'"]\"["' + "]" * 2000,
        "1" * 5000,
        '{"a": ' + "2" * 5000 + "}",
        '{"a": 1, "a": 2}',
    ]
    (tmp_path / "a.json").write_text(f"[{', '.join([*values, '3', json.dumps({'a': 4})])} ]\n")
    found, bad = read(tmp_path / "a.json", "skip")
    assert [(record.location, record.fields["a"]) for record in found] == [("record 1", 1), ("record 7", 4)]
    assert bad.count == 5


def test_json_lines_under_the_name_json(tmp_path):
    """As C4 and others publish them."""
    (tmp_path / "a.json").write_text('{"a": 1}\n\n{"a": [2,\n{"a": 3}\n')
    found, bad = read(tmp_path / "a.json", "skip")
    assert [record.location for record in found] == ["line 1", "line 4"]
    assert bad.count == 1


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("a.jsonl", '{"text": "é"}'.encode("utf-16-le"), ["UTF-16", 1]),
        ("a.txt", "two words".encode("utf-16-be"), ["UTF-16", 0]),
        ("a.csv.gz", gzip.compress("text\na".encode("utf-16-le")), ["UTF-16"]),
        ("a.txt", "text".encode("utf-32"), ["UTF-32"]),
        ("a.txt", "text".encode("utf-32-be"), ["UTF-32", 0]),
        ("a.txt", "text".encode("utf-16")[:-1], ["UTF-16"]),
        ("a.txt", b"\xef\xbb\xbf", ["empty"]),
        ("a.jsonl", gzip.compress(b"{}"), [".gz"]),
        ("a.jsonl", zstd(b"{}"), [".zst"]),
        ("a.jsonl.gz", b"{}", []),
        ("a.jsonl.zst", b"{}", []),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99)[:-9], []),
        ("a.jsonl.zst", zstd(b"{}\n" * 99)[:-9], []),
        ("a.txt.gz", gzip.compress(b""), ["empty"]),
        ("a.gz", gzip.compress(b"{}"), [".gz", ".jsonl"]),
        ("a.parquet.gz", gzip.compress(b"{}"), [".gz"]),
    ],
)
def test_files_that_are_refused(tmp_path, name, data, named):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=naming(tmp_path / name, *named)) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_several_members(tmp_path):
    """Compressed files that were concatenated, as ``cat`` and parallel compressors write them."""
    for suffix, compress in COMPRESS.items():
        file = tmp_path / f"a.jsonl{suffix}"
        file.write_bytes(compress(b'{"a": 1}\n{"a"') + compress(b": 2}\n"))
        assert [record.fields["a"] for record in read(file)[0]] == [1, 2]


def test_names_that_look_like_patterns(tmp_path):
    """An existing file is that file; Arrow fills the objects of a column, and nothing of that stays."""
    calls = [{"a": {"x": 1}}, {"a": {"y": [{"z": None, "w": 2}]}}]
    for name in ("a[1].parquet", "a::b.parquet"):
        pq.write_table(pa.Table.from_pylist(calls), tmp_path / name)
        assert [record.fields for record in read(tmp_path / name)[0]] == [{"a": {"x": 1}}, {"a": {"y": [{"w": 2}]}}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet"])
def test_progress_counts_the_bytes_of_the_file(tmp_path, name):
    records = [{"text": f"{i * 7919 % 10007}" * 150, "note": ""} for i in range(2000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name)
    else:
        write(tmp_path / name, records)
    (source,) = find_sources(str(tmp_path / name))
    steps = []
    assert len(list(source.records(BadRecords("stop"), advance=steps.append))) == 2000
    assert sum(steps) == source.size == (tmp_path / name).stat().st_size
    assert min(steps) >= 0
    assert max(steps) <= max(2**20, source.size * 0.6)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    """12 MB of records; a list is parsed in blocks of 1 MB."""
    write(tmp_path / name, [{"text": "word " * 200, "note": ""}] * 12_000)
    (source,) = find_sources(str(tmp_path / name))
    tracemalloc.start()
    count = sum(1 for _ in source.records(BadRecords("stop")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 12_000
    assert peak < 6e6


def test_prompts_of_the_command_line(tmp_path):
    """The same reader, with the formats of prompts."""
    (tmp_path / "a.csv.zst").write_bytes(zstd("question,answer\n2+2?,4\n".encode("utf-16")))
    assert read_prompts(tmp_path / "a.csv.zst") == ["2+2?"]


def test_text_blocks(tmp_path):
    """Compressed text is read in blocks too."""
    (tmp_path / "a.txt.zst").write_bytes(zstd(("é" * 99 + "\n").encode("utf-8-sig") * 20_000))
    blocks = list(Source(str(tmp_path / "a.txt.zst"), "text").text_blocks())
    assert len(blocks) == 4
    assert all(block.endswith("\n") for block in blocks)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('ab"[]{}\\\né', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(
    values=st.lists(json_values, max_size=4),
    indent=st.none() | st.just(1),
    block=st.integers(1, 40),
    cut=st.none() | st.tuples(st.integers(0, 200), st.sampled_from(["", "]", "{", '"', ",", "1", "\\"])),
)
def test_lists_are_parsed_as_json_does(values, indent, block, cut):
    """In blocks of any size: the same values, or the same line of the error; a mistake is one character."""
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    if cut is not None:
        at, sign = cut[0] % len(text), cut[1]
        text = text[:at] + sign + text[at + 1 :]
    before, json_records._BLOCK = json_records._BLOCK, block
    try:
        found, expected = _values_or_error(text), _values_or_line(text)
    finally:
        json_records._BLOCK = before
    if isinstance(found, str):
        assert names(found, "a.json", expected) if isinstance(expected, int) else names(found, "list")
    else:
        pairs = zip(found, expected, strict=True)
        assert all(isinstance(one, json_records.Unreadable) or one == other for one, other in pairs)


def _values_or_error(text):
    try:
        return list(json_records.JsonList(io.BytesIO(text.encode()), "a.json"))
    except ValueError as error:
        return str(error)


def _values_or_line(text):
    """None where the text is JSON and no list, or does not begin as one."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno if text.startswith("[") else None
    return values if isinstance(values, list) else None
