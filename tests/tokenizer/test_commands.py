"""The commands, the files they read, and what they say of bad ones."""

import gzip
import json
import subprocess
import sys

import pytest
from naming import naming

from align.cli import tokenizer as commands
from align.cli.tokenizer import DecodeSettings, EncodeSettings, TrainSettings, read_texts, report
from align.tokenizer import Tokenizer, train_tokenizer


def train(*values, **settings):
    commands.train(TrainSettings(*values, **settings))


def encode(*values, **settings):
    commands.encode(EncodeSettings(*values, **settings))


def decode(*values, **settings):
    commands.decode(DecodeSettings(*values, **settings))


@pytest.fixture
def corpus(tmp_path, sentences):
    file = tmp_path / "corpus.txt"
    file.write_text("".join(sentences) * 50, newline="")
    return file


def test_train_encode_decode(corpus, tmp_path, capsys):
    out = str(tmp_path / "out")
    train([str(corpus)], out, vocab_size=400, json=True)
    told = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.load(out)
    assert told["fingerprint"] == tokenizer.fingerprint
    assert told["vocab_size"] == 400
    assert told["bytes"] == corpus.stat().st_size
    assert told["bytes_per_token"] == told["bytes"] / told["tokens"]
    encode(out, text="Größe <|end|>", json=True)
    ids = json.loads(capsys.readouterr().out)
    assert ids == tokenizer.encode("Größe <|end|>")
    decode(out, ids=ids)
    assert capsys.readouterr().out == "Größe <|end|>\n"
    encode(out, file=str(corpus))
    written = capsys.readouterr().out
    assert list(map(int, written.split())) == tokenizer.encode(corpus.read_bytes())
    for text in (written, json.dumps(list(map(int, written.split())))):
        (tmp_path / "ids").write_text(text)
        decode(out, file=str(tmp_path / "ids"))
        assert capsys.readouterr().out == corpus.read_bytes().decode() + "\n"


def test_train_for_people(corpus, tmp_path, capsys):
    train([str(corpus)], str(tmp_path / "out"), vocab_size=300, sample_bytes=500)
    said = capsys.readouterr().out
    train([str(corpus)], str(tmp_path / "again"), vocab_size=300, sample_bytes=500, json=True)
    found = json.loads(capsys.readouterr().out)
    assert str(tmp_path / "out") in said
    assert "300" in said
    assert f"{found['bytes_per_token']:.3f}" in said
    assert all(repr(token["text"]) in said for token in found["longest"])


def test_report_by_hand():
    """ab x4 in words of its own: one merge; 8 bytes of ab, 4 signs: 12 bytes in 8 tokens, 1.5 each."""
    tokenizer = train_tokenizer(["ab!ab!"], vocab_size=264)
    found = report(tokenizer, ["ab!ab!", "ab!ab!"], longest=2)
    assert (found.bytes, found.tokens, found.bytes_per_token, found.tokens_used) == (12, 8, 1.5, 2)
    assert [(t.text, t.bytes, t.uses) for t in found.longest] == [("ab", 2, 4), ("!", 1, 4)]
    with pytest.raises(ValueError, match="text"):
        report(tokenizer, [""])


def test_records_are_read(tmp_path):
    """Of every kind that training reads; field by field, else the contents of messages."""
    lines = [
        {"text": "a"},
        {
            "messages": [
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
            ]
        },
    ]
    (tmp_path / "x.ndjson").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, lines)).encode())
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps([{"body": "d", "text": "e"}]).encode()))
    (tmp_path / "x.csv").write_text("text,body\nf,g\n", encoding="utf-16")
    assert list(read_texts([str(tmp_path / "x.ndjson")])) == ["a", "b", "c"]
    assert list(read_texts([str(tmp_path / "x.[jc]s*")], field="body")) == ["g", "d"]


def test_plain_files_are_read_in_blocks_that_join(tmp_path):
    """3 MB, and a character of three bytes across every border of 1 MB; then 3 MB without a line end."""
    for text in ("漢字かな\n" * 250_000, "漢" * 1_000_000):
        (tmp_path / "x.txt").write_text(text)
        blocks = list(read_texts([str(tmp_path / "x.txt")]))
        assert "".join(blocks) == text
        assert len(blocks) == (4 if "\n" in text else 1)


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("a.txt", b"", []),
        ("a.txt", b"ab\0\xff\xfe\0", [2]),
        ("a.txt", b"x" * 10 + b"\n" + b"caf\xe9", ["UTF-8", "0xe9", 14]),
        ("a.bin", b"ab", [".bin"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', [2, "JSON"]),
        ("a.jsonl", b'{"text": "a"}\n\n{"body": "a"}', [3, "'text'", "body"]),
        ("a.jsonl", b'{"text": 3}', [1, "'text'", "int"]),
        ("a.jsonl", b'["a"]', [1, "list"]),
        ("a.jsonl", b'{"text": "\xff"}', [1, "UTF-8", "0xff", 11]),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', [1, "messages", "content"]),
        ("a.json", b'[{"text": "a"}, {"b": 1}]', [2, "'text'"]),
        ("a.jsonl", b'{"text": ""}', []),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, data, named):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(ValueError, match=naming("text" if data.endswith(b'""}') else file, *named)) as caught:
        train([str(file)], str(tmp_path / "out"), vocab_size=300)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_arguments(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for call, kind, message in [
        (lambda: train([], "out"), ValueError, "inputs"),
        (lambda: train(["nowhere.txt"], "out"), FileNotFoundError, r"nowhere\.txt"),
        (lambda: encode(str(tmp_path)), ValueError, "text.*file"),
        (lambda: encode(str(tmp_path), text="a", file="b"), ValueError, "text.*file"),
        (lambda: encode(str(tmp_path), file="nowhere"), FileNotFoundError, "nowhere"),
        (lambda: encode("nowhere", text="a"), FileNotFoundError, "nowhere"),
        (lambda: decode(str(tmp_path)), ValueError, "ids.*file"),
        (lambda: decode(str(tmp_path), ids=[10**9]), ValueError, r"\b1000000000\b.*\b599\b"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    (tmp_path / "ids").write_text("[1, 2, x]")
    with pytest.raises(ValueError, match="/ids.*'x'"):
        decode(str(tmp_path), file=str(tmp_path / "ids"))
    (tmp_path / "ids").write_text("")
    with pytest.raises(ValueError, match="/ids"):
        encode(str(tmp_path), file=str(tmp_path / "ids"))


def test_importing_stays_cheap():
    """Neither torch nor what only some paths need; a fresh process says what came along."""
    heavy = ["torch", "transformers", "tokenizers", "datasets", "jinja2", "rich", "regex", "huggingface_hub"]
    code = f"import sys, align.tokenizer; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
