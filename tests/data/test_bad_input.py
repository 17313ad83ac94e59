"""Each mistake is one clear line that names the file, the place and the reason."""

import json

import pytest

from align.data.formats import chat_messages, detect_format
from align.data.text_data import ChatData, TextData

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


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
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt: the file is empty"),
        ("empty.jsonl", b"", "empty.jsonl: the file is empty"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: no usable records"),
        ("binary.txt", b"\x7fELF\0\1", r"binary.txt: a binary file \(a zero byte at 4\), not .txt"),
        ("binary.jsonl", b"\x89PNG\0", "binary.jsonl: a binary file"),
        ("latin.txt", "é".encode("latin-1"), "latin.txt: not UTF-8 text: byte 0xe9 at 0"),
        ("zero.jsonl", [{"text": "a"}, {"text": ""}], "zero.jsonl: line 2: field 'text' is an empty document"),
        ("type.jsonl", [{"text": 3}], "type.jsonl: line 1: field 'text' must be text, found int"),
        ("typo.jsonl", [{"texts": "a"}], "line 1: field 'text' is missing, did you mean 'texts'?"),
        ("half.jsonl", b'{"text": "a\\ud800"}\n', "line 1: field 'text' holds a lone surrogate at character 1"),
        ("cut.jsonl", b'{"text": "a"}\n\n{"text": "b\n', "cut.jsonl: line 3: not JSON: .* at column 12"),
        ("list.jsonl", b"[1]\n", "list.jsonl: line 1: must be an object with fields, found list"),
        ("bytes.jsonl", b'{"text": "\xff"}\n', "bytes.jsonl: line 1: not UTF-8: byte 0xff at column 11"),
        (
            "lines.json",
            b'{"text": "a"}\n{"text": "b"}',
            r"lines.json: line 2: not JSON: Extra data \(one object a line",
        ),
        ("object.json", b'{"text": "a"}', "object.json: must hold a list of records, found dict"),
        ("wide.csv", b"text\na\nb,c\n", "wide.csv: line 3: more values than the 1 columns"),
        ("open.csv", b'text\n"a\n', "open.csv: line 2: not CSV: unexpected end of data"),
        ("false.parquet", b"not parquet", "false.parquet: can't be read as parquet"),
        ("text.docx", b"PK", "the ending '.docx' says no format; known: .jsonl"),
    ],
)
def test_text_files(load, name, content, message):
    """Files and records that are no text."""
    with pytest.raises(ValueError, match=message) as caught:
        load(TextData, name, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER]}, "the chat has no assistant turn"),
        ({"messages": []}, "the chat has no assistant turn"),
        ({"messages": [USER, ANSWER | {"content": " "}]}, "message 2 is an assistant turn with nothing in it"),
        ({"messages": [USER, ANSWER | {"role": "tool"}]}, r"'messages\[1\].role' is the unknown role 'tool'; known: "),
        ({"messages": [USER, {"role": "assistant"}]}, r"field 'messages\[1\].content' is missing"),
        ({"messages": [USER, {"role": "assistant", "contents": "b"}]}, "did you mean 'contents'"),
        ({"messages": [USER, ANSWER | {"content": ["b"]}]}, r"field 'messages\[1\].content' must be text, found list"),
        ({"messages": "hello"}, "field 'messages' must be a list of messages, found str"),
        ({"prompt": 1, "completion": "a"}, "field 'prompt' must be text or a list of messages, found int"),
        ({"instruction": "a", "output": ""}, "message 2 is an assistant turn with nothing in it"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "unknown role 'bot'; known: human, gpt"),
        ({"question": "a", "answer": "b"}, r"fields 'question', 'answer' fit no chat format \(messages: messages; "),
        ({"messages": [USER, ANSWER], "prompt": "a", "completion": "b"}, "set format to messages or prompt_completion"),
    ],
)  # fmt: skip
def test_chats(load, record, message):
    """Chats that can't be trained on."""
    with pytest.raises(ValueError, match=r"chats.jsonl: line 1: .*" + message):
        load(ChatData, "chats.jsonl", [record])


def test_chat_longer_than_the_smallest_context(load):
    """A row of 3 keeps bos, the header and one token of the response; context 1 is refused as a setting."""
    record = {"messages": [USER, ANSWER]}
    assert load(ChatData, "chats.jsonl", [record], context=2).describe()["train"]["responses_without_end"] == 1
    with pytest.raises(ValueError, match="context is 1; it must be at least 2"):
        load(ChatData, "chats.jsonl", [record], context=1)


def test_skip_counts_and_names_the_first(load, capfd, caplog):
    """Two of four records are bad; the numbers go to the log, also when the tokens come from the cache."""
    import logging

    records = [{"text": "a"}, {"text": ""}, {"text": 1}, {"text": "b"}]
    logging.getLogger("lightning.pytorch").propagate = True
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data = load(TextData, "some.jsonl", records, on_bad_record="skip")
        assert data.describe()["train"]["documents"] == 2
        assert "left out 2 bad record(s); the first: " in caplog.text
        assert "some.jsonl: line 2: field 'text' is an empty document" in caplog.text


def test_only_bad_records(load):
    """Nothing is left: an error, and no cache of nothing."""
    for _ in range(2):
        with pytest.raises(ValueError, match="no usable records; left out 1 bad record"):
            load(TextData, "some.jsonl", [{"text": ""}], on_bad_record="skip")


def test_missing_file(load, tmp_path):
    """The nearest name there is."""
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match="trian.jsonl: no such file; the nearest there is: .*/train.jsonl"):
        load(TextData, str(tmp_path / "trian.jsonl"), None)
    with pytest.raises(FileNotFoundError, match=r"\*.csv: no such file"):
        load(TextData, str(tmp_path / "*.csv"), None)
    with pytest.raises(FileNotFoundError, match=r"a folder; name its files, for example .*/\*.jsonl"):
        load(TextData, str(tmp_path), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0; it must be at least 0 and less than 1"),
        ({"val_fraction": 0.1, "validation": "x"}, "validation and val_fraction are both given"),
        ({"processes": 0}, "processes is 0; it must be at least 1"),
    ],
)
def test_impossible_settings(load, settings, message):
    """Refused at construction."""
    with pytest.raises(ValueError, match=message):
        load(TextData, "a.txt", "abc", **settings)


def test_test_files_missing(load):
    """`align test` without test files."""
    with pytest.raises(ValueError, match="data.test is not set"):
        load(TextData, "a.txt", "abc").test_dataloader()


def test_detection_reads_fields():
    """Preference fields are not a chat format here; alpaca's input is optional."""
    assert detect_format({"instruction": "a", "output": "b"}) == "alpaca"
    assert chat_messages({"instruction": "a", "output": "b"}, "alpaca")[0]["content"] == "a"
    with pytest.raises(ValueError, match="fit no chat format"):
        detect_format({"prompt": "a", "chosen": "b", "rejected": "c"})


def test_json_round_trip_of_odd_text(load):
    """NUL, emoji and combining marks inside JSON are text like any other."""
    data = load(TextData, "odd.json", json.dumps([{"text": "a\0\U0001f600e\u0301"}]), context=12)
    row = next(iter(data.train_dataloader())).ids[0].tolist()
    assert data.tokenizer.decode(row) == "a\0\U0001f600e\u0301"


def test_too_little_for_a_row(load):
    """A held-out hundredth of 100 letters: 99 and their bos stay, 1 and eos go, one row; of 1 letter only bos stays,
    which is no row."""
    assert load(TextData, "a.txt", "a" * 100, val_fraction=0.01).describe()["validation"]["rows"] == 1
    with pytest.raises(ValueError, match=r"train: the data fill 0 row\(s\); at least 1 is needed"):
        load(TextData, "b.txt", "a", val_fraction=0.01)
