"""Streamed rows: the cached path's tokens without a cache, and exact positions."""

import json
import os
from itertools import islice, takewhile

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming
from ranks import on_two_ranks

from align.data.mixing import WeightedSource
from align.data.readers import BadRecordError, Source
from align.data.rows import Packing, best_fit_rows, single_rows, wrapped_rows
from align.data.streaming import BlockStream, CountedSource, Document, Position, files_of_rank, quick_fingerprint
from align.data.text_data import ChatData, TextData


class Numbers:
    """Documents of the given sizes whose tokens are 0, 1, 2, ... over each file."""

    def __init__(self, sizes):
        self.sizes = sizes

    def documents(self, source, bad):
        bounds = np.cumsum([0, *self.sizes])
        for record, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
            if record >= source.skipped:
                yield Document(record, np.arange(first, last), None)

    def report(self):
        return []


WIDTH = 6
PACKINGS = {
    "wrap": Packing(lambda bounds: wrapped_rows(bounds, WIDTH, block_diagonal=False), True, False),
    "best_fit": Packing(lambda bounds: best_fit_rows(bounds, WIDTH), True, True),
    "none": Packing(single_rows, False, False),
}


def stream(sizes, packing, rows, files=1):
    return BlockStream(
        [Source(str(number), "jsonl") for number in range(files)],
        Numbers(sizes),
        packing=PACKINGS[packing],
        width=WIDTH,
        rows=rows,
        seed=(0, 0),
        on_bad_record="stop",
    )


def epoch_of(blocks, epoch=0):
    """The blocks of an epoch."""
    return list(takewhile(lambda block: block.start.epoch == epoch, blocks))


def content(block):
    return [block.start, block.stop, [(row.ids.tolist(), row.lengths.tolist()) for row in block.rows]]


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@settings(deadline=None, max_examples=60)
@given(sizes.filter(lambda sizes: sum(sizes) > 1), st.sampled_from(["wrap", "best_fit"]), st.integers(1, 5))
def test_an_epoch_has_every_token(sizes, packing, rows):
    """best_fit: each token but the documents' first ones is a target once, and a document that fits in a row is one
    span. wrap: all but at most the first one of each block. Blocks have about as many rows as they should."""
    blocks = epoch_of(stream(sizes, packing, rows).blocks(Position()))
    spans = []
    for block in blocks:
        assert sum(len(row.ids) for row in block.rows) <= (rows + 1) * (WIDTH + 1)
        for row in block.rows:
            assert row.lengths.sum() == len(row.ids) <= WIDTH
            spans += np.split(row.ids, np.cumsum(row.lengths)[:-1])
    targets = sorted(token for span in spans for token in span[1:].tolist())
    assert len(targets) == len(set(targets))
    bounds = np.cumsum([0, *sizes]).tolist()
    if packing == "wrap":
        # A last block of a single token has no row.
        assert len(targets) >= sum(sizes) - len(blocks) - 1
    else:
        assert targets == [token for token in range(sum(sizes)) if token not in bounds]
        begins = {int(span[0]): len(span) for span in spans}
        assert all(begins[begin] == size for begin, size in zip(bounds, sizes, strict=False) if size <= WIDTH)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.sampled_from(["wrap", "best_fit"]), st.integers(1, 4))
def test_a_block_follows_from_where_it_begins(sizes, packing, rows):
    """Read from any block's start, two files and two epochs, the blocks are the same."""
    blocks = list(islice(stream(sizes, packing, rows, files=2).blocks(Position()), 12))
    for index, block in enumerate(blocks):
        again = islice(stream(sizes, packing, rows, files=2).blocks(block.start), len(blocks) - index)
        assert [content(one) for one in again] == [content(one) for one in blocks[index:]]


def test_blocks_by_hand():
    """Rows of 6 tokens, blocks of 2 rows (12 tokens). Document 0 has 20 tokens: 11 fit (two steps of 5 and a shared
    token), then the rest of 10 begins with token 10. It and document 1 (3 tokens) fill the second block."""
    first, second = islice(stream([20, 3, 1], "best_fit", 2).blocks(Position()), 2)
    assert sorted(row.ids.tolist() for row in first.rows) == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
    assert (first.stop, second.stop) == (Position(0, 0, 0, 10), Position(0, 0, 2, 0))
    assert sorted(row.ids.tolist() for row in second.rows) == [
        [10, 11, 12, 13, 14, 15],
        [15, 16, 17, 18, 19],
        [20, 21, 22],
    ]


def test_files_come_in_another_order_in_each_epoch():
    """20 files of one document: an epoch reads each once, the next one in another order."""

    class Names(Numbers):
        def documents(self, source, bad):
            yield Document(0, np.array([int(source.name)]), None)

    files = stream([1], "none", 1, files=20)
    files.encoder = Names([1])
    order = [int(block.rows[0].ids[0]) for block in islice(files.blocks(Position()), 40)]
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]


@pytest.mark.parametrize("sizes", [[], [1]])
def test_nothing_usable_is_an_error(sizes):
    """No document, or one token that nothing follows: no row in a whole epoch."""
    with pytest.raises(ValueError, match=naming("no usable record")):
        next(stream(sizes, "wrap", 1).blocks(Position()))


def test_records_are_counted(write):
    """The second record of three is known already."""
    path = write("a.jsonl", [{"text": letter} for letter in "abc"])
    source = CountedSource(path, "jsonl", skipped=1)
    assert [(source.read, source.skipping) for _ in source.records(None)] == [(1, True), (2, False), (3, False)]


def test_fingerprints_cover_size_and_ends(write):
    """Files that differ in their size, first or last byte."""
    prints = {
        quick_fingerprint(Source(write(str(content), content), "jsonl")) for content in (b"ab", b"abb", b"bb", b"aa")
    }
    assert len(prints) == 4


def chats(count, letter="a"):
    return [
        {"messages": [{"role": "user", "content": letter * (n % 5 + 1)}, {"role": "assistant", "content": "b" * n}]}
        for n in range(1, count + 1)
    ]


CASES = {
    "wrap": (TextData, {"packing": "wrap"}),
    "block diagonal": (TextData, {"packing": "wrap", "block_diagonal": True}),
    "best fit": (TextData, {"packing": "best_fit"}),
    "chats": (ChatData, {"packing": "none", "context": 40}),
    "packed chats": (ChatData, {"packing": "best_fit", "context": 40}),
}


@pytest.fixture
def make(tokenizer_dir, write, tmp_path):
    """``make(case, **settings)``: data of 40 and 10 records, 3 : 1, set up for training."""
    texts = {size: [{"text": "ab" * n} for n in range(1, size + 1)] for size in (40, 10)}
    files = {
        TextData: [write("t40.jsonl", texts[40]), write("t10.jsonl", texts[10])],
        ChatData: [write("c40.jsonl", chats(40)), write("c10.jsonl", chats(10, "c"))],
    }

    def make(case, *, rank=0, ranks=1, **given):
        kind, chosen = CASES[case]
        long, short = files[kind]
        given = {
            "train": [WeightedSource(long, 3), WeightedSource(short, 1)],
            "streaming": True,
            "shuffle_buffer": 12,
            "context": 16,
            "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
        } | chosen | given  # fmt: skip
        data = kind(tokenizer_dir, **given)
        data._data_parallel = lambda: {"num_replicas": ranks, "rank": rank}
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def listed(batch):
    return [None if part is None else part.tolist() for part in batch]


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_cached_path(make, case, tmp_path):
    """One source, the whole of it in the buffer: the rows of an epoch, with masks, positions and documents, are those
    of the corpus; nothing is written."""
    train = make(case)._given["train"][0].files
    buffer = 40 if case == "chats" else 200  # a group of batches of similar length may span epochs
    loader = make(case, train=train, shuffle_buffer=buffer, batch_size=1).train_dataloader()
    assert not (tmp_path / "cache").exists()
    cached = make(case, train=train, streaming=False)._datasets["train"]
    streamed = sorted(str(listed(batch)) for batch in islice(loader, len(cached)))
    assert streamed == sorted(str(listed(cached[np.array([row])])) for row in range(len(cached)))


@pytest.mark.parametrize("case", CASES)
def test_resumes_at_the_next_batch(make, case):
    """After any of 14 batches, over several blocks and epochs of the short source."""
    loader = make(case).train_dataloader()
    batches, states = [], [json.dumps(loader.state_dict())]
    for batch in islice(loader, 20):
        batches.append(listed(batch))
        states.append(json.dumps(loader.state_dict()))
    for after in range(14):
        resumed = make(case).train_dataloader()
        resumed.load_state_dict(json.loads(states[after]))
        assert [listed(batch) for batch in islice(resumed, 3)] == batches[after : after + 3]
        assert resumed.tally.state_dict() == json.loads(states[after + 3])["delivered"]


@pytest.mark.parametrize("case", ["best fit", "chats"])
def test_ranks_share_out_the_rows(make, case):
    """Two ranks with batches of 2 see in each step what one with 4 sees; weights 3 : 1 hold over 12 rows."""
    whole = list(islice(make(case).train_dataloader(), 12))
    halves = [
        islice(make(case, batch_size=2, rank=rank, ranks=2).train_dataloader(), 12) for rank in (0, 1)
    ]  # fmt: skip

    def rows(*batches):
        return sorted([token for token in row if token != 256] for batch in batches for row in batch.ids.tolist())

    assert [rows(one) for one in whole] == [rows(*parts) for parts in zip(*halves, strict=True)]
    loader = make(case).train_dataloader()
    list(islice(loader, 12))
    assert loader.tally.rows.tolist() == [36, 12]


def test_rows_of_similar_length_share_a_batch(make):
    """A buffer of 40 chats, groups of 10 batches of 4: less padding than in the order of the file's shuffled rows."""

    def padding(buffer):
        batches = list(islice(make("chats", shuffle_buffer=buffer, context=64).train_dataloader(), 10))
        return np.mean([(batch.ids == 256).double().mean().item() for batch in batches])

    assert padding(40) < 0.7 * padding(4)


def test_bad_records(make, write, capsys):
    """stop names file and line, from a worker too; skip counts, and the report says so."""
    path = write("bad.jsonl", [{"text": "ab" * 20}, {"body": "x"}, {"text": "cd" * 20}])
    for workers in (0, 1):
        loader = make("wrap", train=path, workers=workers).train_dataloader()
        with pytest.raises(BadRecordError, match=naming("bad.jsonl", "line 2", "text")):
            next(iter(loader))
        loader.close()
    data = make("wrap", train=path, on_bad_record="skip")
    loader = data.train_dataloader()
    next(iter(loader))
    assert any("bad.jsonl" in line and "line 2" in line for line in loader.report())


def test_hub_data_sets_are_streamed(make, monkeypatch):
    """Through ``datasets``, in a worker too: every record of an epoch once. Blocks have 5 documents of 16 tokens (4
    rows are 68), so batch 3, of two rows, begins with row 1 of the second block, after 5 records that are only read."""
    import datasets

    records = [{"text": letter * 14} for letter in "abcdefghij"]

    def load_dataset(name, config, *, split, revision, streaming):
        assert (name, config, split, revision, streaming) == ("owner/name", None, "train", "c0ffee", True)
        return datasets.IterableDataset.from_generator(lambda: iter(records))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    commits = iter(["c0ffee", "decaf"] * 2)  # the data set changes after it was looked up
    monkeypatch.setattr("align.data.readers.dataset_commit", lambda name: next(commits))
    for workers in (0, 1):
        data = make("best fit", train="owner/name", workers=workers, shuffle_buffer=4, batch_size=2)
        loader = data.train_dataloader()
        batches = list(islice(loader, 5))
        assert sorted(row[1] for batch in batches for row in batch.ids.tolist()) == list(range(64, 74))
        loader.load_state_dict(loader.state_dict() | {"batches": 3, "positions": [[0, 0, 5, 0, 1]]})
        assert [listed(batch) for batch in islice(loader, 2)] == [listed(batch) for batch in batches[3:]]
        loader.close()
        assert data.fingerprints == {"owner/name": "hub:owner/name@c0ffee"}
        next(commits)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"val_fraction": 0.1}, ["val_fraction", 0.1, "validation"]),
        ({"workers": 2}, ["workers", 2]),
        ({"shuffle_buffer": 0}, ["shuffle_buffer", 0]),
        ({"epoch": "shortest"}, ["epoch", "shortest"]),
        ({"packing": "stream"}, ["packing", "stream", "wrap"]),
    ],
)
def test_impossible_settings(make, given, named):
    with pytest.raises(ValueError, match=naming(*named)):
        make("wrap", **given)


@pytest.mark.parametrize(
    ("given", "named"), [({}, ["trainer.max_steps", -1]), ({"overfit_batches": 1}, ["overfit_batches"])]
)
def test_the_trainer_says_how_long(make, given, named):
    """An epoch is what the run needs: 3 steps of 2 batches."""
    settings = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    data = make("wrap")
    data.trainer = pl.Trainer(**settings, max_epochs=1, **given)
    with pytest.raises(ValueError, match=naming(*named)):
        data.train_dataloader()
    data.trainer = pl.Trainer(**settings, max_steps=3, accumulate_grad_batches=2)
    assert len(data.train_dataloader()) == 6


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"shuffle_buffer": 13}, ["shuffle_buffer", 12, 13]),
        ({"packing": "best_fit"}, ["packing", "wrap", "best_fit"]),
        ({"batch_size": 8}, ["batch_size", 4, 8]),
    ],
)
def test_a_position_counted_otherwise_is_refused(make, given, named):
    state = make("wrap").train_dataloader().state_dict()
    with pytest.raises(ValueError, match=naming(*named)):
        make("wrap", **given).train_dataloader().load_state_dict(state)


def own_files(write, sizes):
    """Files of documents of 14 letters: file 0 of a, file 1 of b, ..."""
    return [
        write(f"own{number}.jsonl", [{"text": "abcdefgh"[number] * 14}] * size) for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "ranks", "shares"),
    [([3, 3, 3, 3], 2, ["02", "13"]), ([5, 3, 2], 2, ["0", "12"]), ([1, 2, 3, 6], 2, ["3", "012"]), ([4], 1, ["0"])],
)
def test_files_are_shared_out_by_size(write, sizes, ranks, shares):
    """The largest first, each to the rank that has the fewest bytes."""
    sources = [Source(path, "jsonl") for path in own_files(write, sizes)]
    found = [files_of_rank(sources, ranks=ranks, rank=rank) for rank in range(ranks)]
    assert ["".join(str(sources.index(source)) for source in share) for share in found] == shares


@pytest.mark.parametrize("sizes", [[4], [4, 4, 4], [3, 2]])
def test_files_that_cannot_be_shared_out_are_refused(write, sizes):
    """One file for two ranks, twice as much for one as for the other, and half as much again."""
    with pytest.raises(ValueError, match=naming("files_by_rank", "own0.jsonl", f"{len(sizes)} file")):
        files_of_rank([Source(path, "jsonl") for path in own_files(write, sizes)], ranks=2, rank=0)


def test_a_data_set_of_the_hub_has_no_files_of_a_rank():
    with pytest.raises(ValueError, match=naming("files_by_rank", "owner/name")):
        files_of_rank([Source("owner/name", "hub")], ranks=2, rank=0)


@pytest.fixture
def by_rank(make, write):
    """``by_rank(rank)``: data of two ranks, which read files 0 and 2, and 1 and 3."""
    train = own_files(write, [6, 6, 6, 6])
    settings = {"train": train, "files_by_rank": True, "shuffle_buffer": 4, "batch_size": 2, "ranks": 2}
    return lambda rank, **given: make("best fit", rank=rank, **settings | given)


def letters(batches) -> set[int]:
    """Letters of the rows, from 0."""
    return {token - 64 for batch in batches for row in batch.ids.tolist() for token in row if 64 <= token < 72}


def test_each_rank_reads_files_of_its_own_and_resumes_in_them(by_rank):
    """An epoch of a rank is 12 documents, a row each: 6 batches. A state after any of 8 serves both."""
    loaders, board = [], [None, None]
    for rank in (0, 1):
        data = by_rank(rank)
        data._of_all_ranks = lambda own, rank=rank: board.__setitem__(rank, own) or board
        loaders.append(data.train_dataloader())
    batches, states = [[], []], []
    for step in zip(*(islice(loader, 11) for loader in loaders), strict=True):
        for rank, batch in enumerate(step):
            batches[rank].append(batch)
        states.append(json.dumps([loader.state_dict() for loader in loaders][-1]))
    assert [letters(of[:6]) for of in batches] == [{0, 2}, {1, 3}]
    for after in range(1, 9):
        for rank in (0, 1):
            resumed = by_rank(rank).train_dataloader()
            resumed.load_state_dict(json.loads(states[after - 1]))
            found = [listed(batch) for batch in islice(resumed, 3)]
            assert found == [listed(batch) for batch in batches[rank][after : after + 3]]


def test_files_of_ranks_resume_on_as_many_ranks_only(by_rank, make):
    data = by_rank(0)
    data._of_all_ranks = lambda own: [own, own]
    state = data.train_dataloader().state_dict()
    for other in (by_rank(0, files_by_rank=False), by_rank(0, ranks=1, batch_size=4)):
        with pytest.raises(ValueError, match=naming("ranks", 2, 1)):
            other.train_dataloader().load_state_dict(state)
    with pytest.raises(ValueError, match=naming("files_by_rank", "streaming")):
        make("wrap", streaming=False, files_by_rank=True)


def test_two_processes_share_their_positions(by_rank, tmp_path):
    """Real ranks: each resumes in its own files from the state that rank 0 would save."""

    def work():
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")
        loader = by_rank(rank).train_dataloader()
        list(islice(loader, 3))
        state = loader.state_dict()
        states = [state]
        torch.distributed.broadcast_object_list(states)
        assert states == [state]
        following = [listed(batch) for batch in islice(loader, 2)]
        resumed = by_rank(rank).train_dataloader()
        resumed.load_state_dict(states[0])
        assert [listed(batch) for batch in islice(resumed, 2)] == following

    on_two_ranks(work, tmp_path / "log")
