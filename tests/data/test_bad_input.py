"""Each mistake is one clear line that names the file, the place and the reason."""

import json

import pytest
from naming import names, naming

from align.data.formats.chats import CHAT_FORMATS, Alpaca
from align.data.formats.record_format import detect
from align.data.text_data import ChatData, TextData

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {}}}


@pytest.fixture
def load(tokenizer_dir, write, tmp_path):
    """``load(kind, name, content, **settings)``: write a file and prepare it."""

    def load(kind, name, content, **settings):
        path = name if content is None else write(name, content)
        data = kind(tokenizer_dir, path, cache_dir=str(tmp_path / "cache"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return load


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.txt", b"", []),
        ("empty.jsonl", b"", []),
        ("blank.jsonl", b"\n \n", []),
        ("binary.txt", b"\x7fELF\0\1", ["binary", 4]),
        ("binary.jsonl", b"\x89PNG\0", ["binary"]),
        ("latin.txt", "é".encode("latin-1"), ["UTF-8", "0xe9", 0]),
        ("zero.jsonl", [{"text": "a"}, {"text": ""}], [2, "text"]),
        ("type.jsonl", [{"text": 3}], [1, "text", "int"]),
        ("typo.jsonl", [{"texts": "a"}], [1, "text", "texts"]),
        ("half.jsonl", b'{"text": "ab\\ud800"}\n', [1, "text", "surrogate", 2]),
        ("cut.jsonl", b'{"text": "a"}\n\n{"text": "b\n', [3, "JSON", 12]),
        ("list.jsonl", b"[1]\n", [1, "list"]),
        ("listed.jsonl", b'[\n{"text": "a"}\n]', [1, "list", ".json"]),
        ("bytes.jsonl", b'{"text": "\xff"}\n', [1, "UTF-8", "0xff", 11]),
        ("lines.json", b'{"text": "a"}\n{"text": "b}', [2, "JSON"]),
        ("object.json", b'{\n"text": "a"}', [1, "list"]),
        ("number.json", b" 7", ["list", "'7'"]),
        ("open.json", b'[{"text": "a"},\n{"text": "b"}', [2, 14]),
        ("comma.json", b'[{"text": "a"},\n]', [2, 1]),
        ("two.json", b'[{"text": "a"}\n]\n[]', [3, 1]),
        ("bytes.json", b'[{"text": "\xff"}]', ["UTF-8", "0xff", 11]),
        ("wide.csv", b"text\na\n\nb,c\n", [4, 1, 2]),
        ("open.csv", b'text\n"a\n', [2, "CSV"]),
        ("bytes.csv", b"text\na\n\xff\n", [3, "UTF-8", "0xff", 1]),
        ("twice.csv", b"text,text\na,b\n", [1, "text"]),
        ("deep.jsonl", b"[" * 200_000, [1, "nested"]),
        ("digits.jsonl", b'{"text": ' + b"1" * 5000 + b"}", [1, "4,300"]),
        ("twice.jsonl", b'{"text": "a", "text": "b"}', [1, "text"]),
        ("none.json", b"[]", []),
        ("none.csv", b"text\n", []),
        ("false.parquet", b"not parquet", ["parquet"]),
        ("text.docx", b"PK", [".docx", ".jsonl"]),
    ],
)
def test_text_files(load, name, content, named):
    """Files and records that are no text."""
    with pytest.raises(ValueError, match=naming(name, *named)) as caught:
        load(TextData, name, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"messages": [USER]}, ["assistant"]),
        ({"messages": []}, ["assistant"]),
        ({"messages": [USER, ANSWER | {"content": " "}]}, [2, "assistant"]),
        ({"messages": [USER, ANSWER | {"role": "tool"}, ANSWER]}, [2, "tool"]),
        ({"messages": [USER, ANSWER | {"role": "robot"}]}, ["messages", 2, "role", "robot", "assistant"]),
        ({"messages": [USER, ANSWER | {"role": ["user"]}]}, ["messages", 2, "role", "['user']"]),
        ({"messages": [USER, [ANSWER]]}, ["messages", 2, "list"]),
        ({"messages": [None]}, ["messages", 1, "NoneType"]),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, [2, "tool_calls"]),
        ({"messages": [USER, ANSWER | {"tool_calls": [{"name": 1}]}]}, ["messages", 2, "tool_calls"]),
        ({"messages": [USER, ANSWER | {"weight": 2}]}, ["messages", 2, "weight", 2]),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, ["weight", 0]),
        ({"messages": [USER, ANSWER], "tools": "add"}, ["tools", "'add'"]),
        ({"messages": [USER, ANSWER], "functions": [{"name": "add"}]}, ["functions"]),
        ({"messages": [{"role": "system", "content": "c"}, USER, ANSWER], "system": "d"}, ["system"]),
        ({"instruction": "a", "input": 7, "output": "b"}, ["input", "int"]),
        ({"instruction": "a", "input": 0, "output": "b"}, ["input", "int"]),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, ["history", 1]),
        ({"instruction": "a", "output": "b", "history": [["c", "d"], ["e", None]]}, ["history", 2]),
        ({"instruction": "a", "output": "b", "history": 0}, ["history", "int"]),
        ({"messages": [USER, {"role": "assistant", "content": None, "function_call": {}}]}, [2, "function_call"]),
        ({"messages": [USER, {"role": "assistant"}]}, ["messages", 2, "content"]),
        ({"messages": [USER, {"role": "assistant", "contents": "b"}]}, ["messages", 2, "content", "contents"]),
        ({"messages": [USER, ANSWER | {"content": ["b"]}]}, ["messages", 2, "'b'"]),
        ({"messages": "hello"}, ["messages", "str"]),
        ({"prompt": 1, "completion": "a"}, ["prompt", "int"]),
        ({"instruction": "a", "output": ""}, [2, "assistant"]),
        ({"conversations": [{"from": "bot", "value": "a"}]}, ["bot", "human", "gpt"]),
        ({"question": "a", "answer": "b"}, ["question", "answer", "messages"]),
        ({"messages": [USER, ANSWER], "prompt": "a", "completion": "b"}, ["format", "Messages", "PromptCompletion"]),
    ],
)
def test_chats(load, record, named):
    """Chats that can't be trained on."""
    with pytest.raises(ValueError, match=naming("chats.jsonl", 1, *named)):
        load(ChatData, "chats.jsonl", [record])


def test_chat_longer_than_the_smallest_context(load):
    """A row of 3 keeps bos, the header and one token of the response; context 1 is refused as a setting."""
    record = {"messages": [USER, ANSWER]}
    assert load(ChatData, "chats.jsonl", [record], context=2).describe()["train"]["responses_without_end"] == 1
    with pytest.raises(ValueError, match=naming("context", 1, 2)):
        load(ChatData, "chats.jsonl", [record], context=1)


def test_skip_counts_and_names_the_first(load, capfd, caplog):
    """Three of five records are bad; the numbers go to the log, also when the tokens come from the cache."""
    import logging

    records = [{"text": "a"}, {"text": ""}, {"text": 1}, {"text": 1}, {"text": "b"}]
    logging.getLogger("lightning.pytorch").propagate = True
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data = load(TextData, "some.jsonl", records, on_bad_record="skip")
        assert data.describe()["train"]["documents"] == 2
        assert names(caplog.text, 3, "some.jsonl", 2, "text")


def test_only_bad_records(load):
    """Nothing is left: an error, and no cache of nothing."""
    for _ in range(2):
        with pytest.raises(ValueError, match=naming("some.jsonl", 1)):
            load(TextData, "some.jsonl", [{"text": ""}], on_bad_record="skip")


def test_missing_file(load, tmp_path):
    """The nearest name there is."""
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=naming("trian.jsonl", tmp_path / "train.jsonl")):
        load(TextData, str(tmp_path / "trian.jsonl"), None)
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "*.csv")):
        load(TextData, str(tmp_path / "*.csv"), None)
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "*.jsonl")):
        load(TextData, str(tmp_path), None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 0}, ["batch_size", 0]),
        ({"val_fraction": 1.0}, ["val_fraction", 1.0]),
        ({"val_fraction": 0.1, "validation": "x"}, ["validation", "val_fraction"]),
        ({"processes": 0}, ["processes", 0]),
    ],
)
def test_impossible_settings(load, settings, named):
    """Refused at construction."""
    with pytest.raises(ValueError, match=naming(*named)):
        load(TextData, "a.txt", "abc", **settings)


def test_no_files(tokenizer_dir):
    with pytest.raises(ValueError, match=naming("train", "[]")):
        TextData(tokenizer_dir, [])


def test_test_files_missing(load):
    """`align test` without test files."""
    with pytest.raises(ValueError, match=naming("data.test")):
        load(TextData, "a.txt", "abc").test_dataloader()


def test_detection_reads_fields():
    """Preference fields are not a chat format here; alpaca's input is optional."""
    record = {"instruction": "a", "output": "b"}
    assert detect(record, CHAT_FORMATS) == Alpaca()
    assert Alpaca().read(record).messages[0]["content"] == "a"
    with pytest.raises(ValueError, match=naming("prompt", "chosen", "rejected")):
        detect({"prompt": "a", "chosen": "b", "rejected": "c"}, CHAT_FORMATS)


def test_json_round_trip_of_odd_text(load):
    """NUL, emoji and combining marks inside JSON are text like any other."""
    data = load(TextData, "odd.json", json.dumps([{"text": "a\0\U0001f600e\u0301"}]), context=12)
    row = next(iter(data.train_dataloader())).ids[0].tolist()
    assert data.tokenizer.decode(row) == "a\0\U0001f600e\u0301"


def test_too_little_for_a_row(load):
    """A held-out hundredth of 100 letters: 99 and their bos stay, 1 and eos go, one row; of 1 letter only bos stays,
    which is no row."""
    assert load(TextData, "a.txt", "a" * 100, val_fraction=0.01).describe()["validation"]["rows"] == 1
    with pytest.raises(ValueError, match=naming("train", 0, 1)):
        load(TextData, "b.txt", "a", val_fraction=0.01)
