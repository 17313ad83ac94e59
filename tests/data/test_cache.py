"""Tokenised once, by content; whole or not there; shared by processes."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from naming import naming

from align.data.corpus import Corpus, CorpusWriter
from align.data.formats.chats import PromptCompletion
from align.data.formats.texts import Text
from align.data.pair_data import PreferenceData, PromptData
from align.data.readers import BadRecords, find_sources
from align.data.text_data import ChatData, TextData
from align.tokenizer import Tokenizer


@pytest.fixture
def build(tokenizer_dir, tmp_path):
    def build(train, **settings):
        data = TextData(tokenizer_dir, train, cache_dir=str(tmp_path / "cache"), **settings)
        data.setup("fit")
        return data

    return build


def caches(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_content_decides(build, write, tmp_path):
    """The same bytes under another name, another context or packing: one cache. Other bytes or field: another."""
    build(write("a.jsonl", [{"text": "abc", "body": "d"}]))
    build(write("b.jsonl", [{"text": "abc", "body": "d"}]), context=7, packing="best_fit")
    assert len(caches(tmp_path)) == 1
    build(write("a.jsonl", [{"text": "abd", "body": "d"}]))
    build(write("b.jsonl", [{"text": "abc", "body": "d"}]), format=Text(field="body"))
    assert len(caches(tmp_path)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"eos_token": "<|end|>"},
        {"document_prefix": "<|eos|>"},
        {"document_prefix": None, "bos_token": None},
        {"add_bos_token": False, "document_prefix": None},
    ],
)
def test_settings_of_the_tokenizer_that_decide_ids(tokenizer_dir, write, tmp_path, change):
    """tokenizer_config.json decides what opens and ends a document: after a change the old corpus is not reused."""
    directory, cache = tmp_path / "tokenizer", str(tmp_path / "cache")
    shutil.copytree(tokenizer_dir, directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    found = []
    for settings in (config, config | change):
        written = {name: value for name, value in settings.items() if value is not None}
        (directory / "tokenizer_config.json").write_text(json.dumps(written))
        corpus = TextData(str(directory), write("a.txt", "abc"), cache_dir=cache)._corpus("train")
        found.append(corpus.ids.tolist())
    fresh = TextData(str(directory), write("a.txt", "abc"), cache_dir=str(tmp_path / "fresh"))._corpus("train")
    assert found[0] != found[1] == fresh.ids.tolist()


def test_fingerprints(build, write):
    """SHA-256 of the bytes "abc"."""
    path = write("a.txt", "abc")
    assert build(path).fingerprints == {path: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


def test_a_failed_writer_leaves_nothing(tmp_path):
    """A writer that fails, then one that succeeds."""
    for error in (OSError("No space left on device"), None):
        try:
            with CorpusWriter(tmp_path / "cache" / "c", vocab_size=300, masked=True) as writer:
                writer.append(np.array([1, 2, 3]), np.array([2, 1]), np.array([False, True, True]))
                if error:
                    raise error
        except OSError:
            assert caches(tmp_path) == []
    assert [path.name for path in caches(tmp_path)] == ["c"]


def test_two_writers_of_one_corpus(tmp_path):
    """Both write, the first to finish stays, the second's copy goes."""
    path = tmp_path / "cache" / "c"
    with CorpusWriter(path, vocab_size=300, masked=False) as one:
        one.append(np.array([1, 2, 3]), np.array([2, 1]))
        with CorpusWriter(path, vocab_size=300, masked=False) as two:
            two.append(np.array([1, 2, 3]), np.array([2, 1]))
    assert [entry.name for entry in caches(tmp_path)] == ["c"]
    corpus = Corpus.open(path)
    assert corpus.ids.tolist() == [1, 2, 3]
    assert corpus.offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_dtype(tmp_path, vocab_size, dtype):
    """The largest id of 65536 is 65535, the largest of two bytes."""
    with CorpusWriter(tmp_path / "c", vocab_size=vocab_size, masked=False) as writer:
        writer.append(np.array([vocab_size - 1]), np.array([1]))
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.ids.dtype == dtype
    assert corpus.ids[0] == vocab_size - 1


def test_damaged_cache(build, write, tmp_path):
    """The error names the truncated file."""
    path = write("a.txt", "abc")
    build(path)
    ids = caches(tmp_path)[0] / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:-1])
    with pytest.raises(ValueError, match=naming(ids)):
        build(path)


def test_workers_get_the_path(build, write):
    """A pickled dataset is small: the tokens stay on disk."""
    dataset = build(write("a.txt", "abc" * 100_000))._datasets["train"]
    assert len(pickle.dumps(dataset.corpus)) < 1000
    assert (pickle.loads(pickle.dumps(dataset.corpus)).ids == dataset.corpus.ids).all()


def test_every_kind_of_file_gives_the_same_records(write, tmp_path):
    """Two records as JSONL, JSON, CSV and Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"text": "one, two\nthree"}, {"text": "007"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "r.parquet")
    files = [
        write("r.jsonl", records),
        write("r.json", json.dumps(records)),
        write("r.csv", 'text\n"one, two\nthree"\n007\n'),
        str(tmp_path / "r.parquet"),
    ]
    for file in files:
        (source,) = find_sources(file)
        found = list(source.records(BadRecords("stop")))
        assert [record.fields for record in found] == records
        assert [record.location for record in found] == {
            "jsonl": ["line 1", "line 2"],
            "csv": ["line 2", "line 4"],
        }.get(source.kind, ["record 1", "record 2"])


def test_globs_lists_and_hub_ids(write, tmp_path):
    """A glob's files by name; a list in its order; owner/name with no such folder is a Hub id."""
    one, two = write("a1.txt", "a"), write("a2.txt", "b")
    assert [source.name for source in find_sources(str(tmp_path / "a*.txt"))] == [one, two]
    assert [source.name for source in find_sources([two, one])] == [two, one]
    assert [source.kind for source in find_sources(["owner/name", "owner/name@en:validation"])] == ["hub", "hub"]


def test_hub(build, monkeypatch):
    """A Hub dataset is streamed; its commit is the fingerprint and what is read, though a newer one comes meanwhile."""
    import types

    import datasets
    import huggingface_hub

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return iter([{"text": "abc"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    commits = {"owner/name": iter(["c0ffee", "decaf"])}
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name: types.SimpleNamespace(sha=next(commits[name]))
    )
    data = build("owner/name@en:validation")
    assert calls == [(("owner/name", "en"), {"split": "validation", "revision": "c0ffee", "streaming": True})]
    assert data.fingerprints == {"owner/name@en:validation": "hub:owner/name@en:validation@c0ffee"}
    assert data.describe()["train"]["tokens"] == 5


def test_all_ranks_read_the_commit_that_rank_0_prepared(tokenizer_dir, tmp_path, monkeypatch):
    """The data set changes after rank 0 has looked it up; rank 1 opens the same corpus, and streams the same commit."""
    import types

    import datasets

    read = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, revision, **kwargs: read.append(revision) or iter([{"text": "abc"}])
    )
    for streaming in (False, True):
        settings = {"streaming": streaming, "cache_dir": str(tmp_path / "cache")}
        first, second = (TextData(tokenizer_dir, "owner/name", **settings) for _ in range(2))
        monkeypatch.setattr("align.data.readers.dataset_commit", lambda name: "c0ffee")
        first.prepare_data()
        monkeypatch.setattr("align.data.readers.dataset_commit", lambda name: "decaf")
        strategy = types.SimpleNamespace(broadcast=lambda own, commits=first._commits: dict(commits))
        second.trainer = types.SimpleNamespace(strategy=strategy, distributed_sampler_kwargs=None)
        second.setup("fit")
        assert second.fingerprints == {"owner/name": "hub:owner/name@c0ffee"}
    assert read == ["c0ffee"]


def test_last_documents_are_held_out(build, write):
    """A quarter of 4 documents is the last one; each document of n letters is n + 2 tokens."""
    data = build(write("a.jsonl", [{"text": text} for text in ("a", "bb", "ccc", "dddd")]), val_fraction=0.25)
    numbers = data.describe()
    assert [numbers[split]["documents"] for split in ("train", "validation")] == [3, 1]
    assert [numbers[split]["tokens"] for split in ("train", "validation")] == [12, 6]
    assert data.tokenizer.decode(next(iter(data.val_dataloader())).ids[0].tolist()) == "dddd"


@pytest.mark.parametrize("kind", [ChatData, PreferenceData, PromptData])
def test_a_single_record_is_not_held_out(kind, tokenizer_dir, write, tmp_path):
    """It can't be in training and in validation, and half a chat is no chat."""
    file = write("a.jsonl", [{"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}])
    form = {"format": PromptCompletion()} if kind is ChatData else {}
    data = kind(tokenizer_dir, file, cache_dir=str(tmp_path / "cache"), val_fraction=0.5, **form)
    with pytest.raises(ValueError, match=naming("val_fraction", 0.5, 1)):
        data.setup("fit")


def test_too_little_memory_names_the_record(build, write, monkeypatch):
    """The second line, which is in hand when memory ends."""
    file = write("a.jsonl", [{"text": "a"}, {"text": "b" * 2_000_000}])
    monkeypatch.setattr(Tokenizer, "encode_to_array", lambda self, texts, **_: _raise(MemoryError()))
    with pytest.raises(ValueError, match=naming(file, 2)):
        build(file, on_bad_record="skip")


def _raise(error):
    raise error


def test_the_end_of_a_single_text_is_held_out(build, write):
    """A tenth of 100 bytes: with bos, training has 91 tokens; the last 10 bytes and eos are held out."""
    data = build(write("a.txt", "a" * 90 + "b" * 10), val_fraction=0.1, context=12)
    train, held_out = data._datasets["train"].rows, data._datasets["validation"].rows
    ids = data._datasets["train"].corpus.ids
    assert ids[train.starts[0]] == 257
    assert (train.starts[-1] + train.lengths[-1]) == 91
    assert data.tokenizer.decode(ids[held_out.starts[0] :].tolist()) == "b" * 10


def test_settings_reach_the_command_line():
    """jsonargparse shows a kind's own settings and the shared ones, with their meaning."""
    from jsonargparse import ArgumentParser

    for kind in (TextData, ChatData):
        parser = ArgumentParser(prog="x")
        parser.add_class_arguments(kind, "data")
        text = " ".join(parser.format_help().split())
        for setting in ("--data.context", "--data.val_fraction", "--data.packing", "--data.on_bad_record {stop,skip}"):
            assert setting in text
        assert text.partition("--data.batch_size BATCH_SIZE ")[2][:1].isalpha(), "its meaning, before its type"
        assert parser.parse_args(["--data.tokenizer=t", "--data.train=[a, b]"]).data.train == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("tinyshakespeare.txt", TextData, {"val_fraction": 0.1}),
        ("instructions-1100.json", ChatData, {"val_fraction": 0.1, "packing": "best_fit"}),
    ],
)
def test_real_files(tokenizer_dir, tmp_path, name, kind, settings):
    """The real files go through; every byte of the text is a target or the first of the stream's rows."""
    file = Path(__file__).resolve().parents[2].parent / "shared" / "data" / name
    if not file.exists():
        pytest.skip(f"needs ../shared/data/{name}")
    data = kind(tokenizer_dir, str(file), cache_dir=str(tmp_path), context=512, batch_size=16, **settings)
    data.setup("fit")
    numbers = data.describe()
    if kind is TextData:
        tokens = file.stat().st_size + 2
        assert sum(numbers[split]["tokens"] for split in numbers) == tokens
        assert sum(int(batch.num_bytes.sum()) for batch in data.train_dataloader()) == file.stat().st_size * 9 // 10
    else:
        assert sum(numbers[split]["documents"] for split in numbers) == 1100
        assert numbers["train"]["padding_share"] < 0.02
