"""Weighted mixtures: shares, epochs, order, and position in the data."""

import json
import multiprocessing
import os
import signal
from itertools import chain, islice, repeat

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from naming import naming

from align.data.mixing import MixedOrder, Mixture, WeightedSource, files_of
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData, TextData


def mixture(*weights):
    return Mixture.of([WeightedSource("x", weight, str(number)) for number, weight in enumerate(weights)])


def shares_out(weights, rows):
    """Webster's method, one row after the other: each goes to the source with the largest w / (rows so far + 1/2)."""
    done, sources = [0] * len(weights), []
    for _ in range(rows):
        sources.append(max(range(len(weights)), key=lambda one: (weights[one] / (done[one] + 0.5), -one)))
        done[sources[-1]] += 1
    return sources


shares = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(shares, st.integers(0, 150), st.integers(0, 100))
def test_every_prefix_has_the_shares(weights, first, rows):
    """The same sources, in whatever stretches they are asked for; each count is within a few rows of its share."""
    mixed = mixture(*weights)
    whole = mixed.sources(0, first + rows)
    assert (mixed.sources(first, first + rows) == whole[first:]).all()
    counts = mixed.counts(first + rows)
    assert (counts == np.bincount(whole, minlength=len(weights))).all()
    due = (first + rows) * np.array(weights) / sum(weights)
    assert (np.abs(counts - due) <= max(1, len(weights) / 2)).all()


@pytest.mark.parametrize("weights", [(5, 3), (1, 1, 2), (8, 4, 2, 1), (3,)])
def test_rows_come_when_they_are_due(weights):
    """Against the method step by step; 7 : 3 by hand is due at 5/7, 15/7, ... and 5/3, 15/3, ...: 0 1 0 0 0 1 ..."""
    assert mixture(*weights).sources(0, 60).tolist() == shares_out(weights, 60)
    assert mixture(7, 3).sources(0, 6).tolist() == [0, 1, 0, 0, 0, 1]


orders = st.builds(
    dict,
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    batch_size=st.sampled_from([2, 4, 6]),
    ends=st.sampled_from(["longest", "shortest"]),
    lengths=st.booleans(),
)


def order_of(case, ranks=1, rank=0):
    sizes = tuple(case["sizes"])
    widths = np.arange(sum(sizes))[::-1] % 7 if case["lengths"] else None
    mixed = mixture(*case["weights"][: len(sizes)])
    return MixedOrder(mixed, sizes, case["batch_size"] // ranks, 3, case["ends"], ranks, rank, widths)


@settings(deadline=None, max_examples=30)
@given(orders)
def test_a_source_repeats_only_after_all_of_it(case):
    """Over 128 steps, whole chunks: the rows of a source occur equally often, to within 1, and the shares hold."""
    order = order_of(case)
    rows = np.concatenate(list(islice(order.steps_from(0), 128)))
    counts = np.bincount(rows, minlength=sum(case["sizes"]))
    ends = np.cumsum(case["sizes"])
    for first, last in zip(ends - case["sizes"], ends, strict=True):
        assert counts[first:last].max() - counts[first:last].min() <= 1
    assert (np.bincount(order.source_of(rows), minlength=len(ends)) == order.mixture.counts(len(rows))).all()


@settings(deadline=None, max_examples=30)
@given(orders, st.integers(0, 200))
def test_the_order_is_one_for_all_ranks_and_starts(case, start):
    """Two ranks with half the batch share out what one rank sees, from any step on."""
    whole = list(islice(order_of(case).steps_from(start), 5))
    halves = [list(islice(order_of(case, 2, rank).batches_from(start), 5)) for rank in (0, 1)]
    for step, parts in zip(whole, zip(*halves, strict=True), strict=True):
        assert sorted(np.concatenate(parts)) == sorted(step)
    assert (np.array(list(islice(order_of(case).steps_from(0), start + 5))[start:]) == np.array(whole)).all()


@settings(deadline=None, max_examples=30)
@given(orders)
def test_an_epoch_ends_when_it_says(case):
    """longest: every source is read once, and was not a step earlier; shortest: none twice, unless one step is an epoch
    already."""
    order = order_of(case)
    counts = [order.mixture.counts(steps * case["batch_size"]) for steps in (len(order) - 1, len(order))]
    if case["ends"] == "longest":
        assert (counts[1] >= case["sizes"]).all()
        assert len(order) == 1 or (counts[0] < case["sizes"]).any()
    else:
        assert len(order) == 1 or (counts[1] <= case["sizes"]).all()


def sources(write):
    """60 records of a, 20 of b and 8 of c, which no record shares a letter with; weights 3 : 2 : 1."""
    files = {
        letter: write(
            f"{letter}.jsonl",
            [
                {"text": letter * n, "prompt": letter * n, "chosen": letter, "rejected": "-", "completion": letter}
                for n in range(1, size + 1)
            ],
        )
        for letter, size in (("a", 60), ("b", 20), ("c", 8))
    }
    return [WeightedSource(files["a"], 3), WeightedSource([files["b"]], 2, "bs"), WeightedSource(files["c"], 1.0)]


SETTINGS = {
    TextData: {"packing": "best_fit"},
    ChatData: {},
    PreferenceData: {},
    PromptData: {},
}


@pytest.fixture
def mixed(tokenizer_dir, write, tmp_path):
    """``mixed(kind, **settings)``: data of the three sources, set up for training."""

    def mixed(kind, **given):
        given = {"context": 80, "batch_size": 6, "cache_dir": str(tmp_path / "cache")} | SETTINGS[kind] | given
        if kind in (ChatData, PreferenceData, PromptData):
            given["format"] = {ChatData: "PromptCompletion", PreferenceData: "Preference", PromptData: "Prompt"}[kind]
            given["format"] = _format(given["format"])
        data = kind(tokenizer_dir, sources(write), **given)
        data.prepare_data()
        data.setup("fit")
        return data

    return mixed


def _format(name):
    from align.data.formats.chats import PromptCompletion
    from align.data.formats.pairs import Preference
    from align.data.formats.prompt_records import Prompt

    return {"PromptCompletion": PromptCompletion, "Preference": Preference, "Prompt": Prompt}[name]()


def take(loader, batches):
    """Some batches, from as many epochs as it takes."""
    return list(islice(chain.from_iterable(repeat(loader)), batches))


def letters(batch):
    """Which of a, b, c is in each row: ids are bytes - 33."""
    return [next(chr(token + 33) for token in row if chr(token + 33) in "abc") for row in batch.ids.tolist()]


@pytest.mark.parametrize("kind", SETTINGS)
def test_shares_of_rows(mixed, kind):
    """3 : 2 : 1 in batches of 6, over 64 steps: 192, 128, 64 of 384 rows (a pair is two); each row has one source."""
    delivered = take(mixed(kind).train_dataloader(), 64)
    seen = [letter for batch in delivered for letter in letters(batch)]
    pairs = 2 if kind is PreferenceData else 1
    assert [seen.count(letter) for letter in "abc"] == [192 * pairs, 128 * pairs, 64 * pairs]
    if kind is TextData:
        for batch in delivered:
            for row in batch.ids.tolist():
                assert len({token for token in row if chr(token + 33) in "abc"}) == 1


def test_what_was_read_is_counted(mixed):
    """After 10 steps of 6 rows: 30, 20 and 10 rows; tokens as counted in the batches."""
    data = mixed(TextData)
    loader = data.train_dataloader()
    batches = take(loader, 10)
    tokens = [0, 0, 0]
    for batch in batches:
        for letter, row in zip(letters(batch), batch.ids.tolist(), strict=True):
            tokens["abc".index(letter)] += sum(token != 256 for token in row)
    assert loader.tally.rows.tolist() == [30, 20, 10]
    assert loader.tally.tokens.tolist() == tokens
    resumed = mixed(TextData).train_dataloader()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    take(resumed, 2)
    assert resumed.tally.rows.tolist() == [36, 24, 12]


def test_held_out_of_each_source(mixed):
    """A quarter of 60, 20 and 8 records; together train and validation have all of them."""
    data = mixed(PromptData, val_fraction=0.25)
    numbers = data.describe()
    assert (numbers["train"]["prompts"], numbers["validation"]["prompts"]) == (45 + 15 + 6, 15 + 5 + 2)
    held_out = [prompt for batch in data.val_dataloader() for prompt in batch.prompts if prompt]
    assert sorted(map(len, held_out)) == sorted([*range(46, 61), *range(16, 21), 7, 8])
    trained = [prompt for batch in take(data.train_dataloader(), 20) for prompt in batch.prompts]
    assert not set(trained) & set(held_out)


def test_workers_and_pairs_by_prompt(mixed):
    """Workers deliver the same batches; prompts of pairs are counted as rows."""
    for settings_ in ({}, {"by_prompt": True}):
        loaders = [mixed(PreferenceData, workers=workers, **settings_).train_dataloader() for workers in (0, 2)]
        here, there = ([batch.ids.tolist() for batch in loader] for loader in loaders)
        assert there == here


def test_numbers_name_the_pair(mixed):
    """A pair's number in a mixture is its index in ``record_loader``, which reference log-probs are stored under."""
    data = mixed(PreferenceData)
    prompts = [prompt for batch in data.record_loader("train") for prompt in batch.prompts if prompt]
    assert len(prompts) == 88
    for batch in take(data.train_dataloader(), 5):
        for number, prompt in zip(batch.numbers.tolist(), batch.prompts, strict=True):
            assert prompts[number] == prompt


@pytest.mark.parametrize(
    ("change", "named"), [({"epoch": "shortest"}, ["epoch", "shortest"]), ({"seed": 1}, ["seed", 1])]
)
def test_a_position_in_another_mixture_is_refused(mixed, change, named):
    state = mixed(TextData).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=naming(*named)):
        mixed(TextData, **change).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ([WeightedSource("a.jsonl", 0.0)], ["weight", "a.jsonl", 0.0]),
        ([WeightedSource("a.jsonl", float("nan"))], ["weight", "nan"]),
        ([WeightedSource([], 1.0)], ["files"]),
        (["a.jsonl", WeightedSource("b.jsonl", 1.0)], ["train", 2, 1]),
        ([WeightedSource("x/a.jsonl", 1.0), WeightedSource("y/a.jsonl", 1.0)], ["a.jsonl", "name"]),
    ],
)
def test_impossible_mixtures(tokenizer_dir, train, named):
    with pytest.raises(ValueError, match=naming(*named)):
        TextData(tokenizer_dir, train)


def test_an_epoch_without_a_mixture(tokenizer_dir):
    with pytest.raises(ValueError, match=naming("epoch", "shortest", "weights")):
        TextData(tokenizer_dir, ["a.jsonl"], epoch="shortest")


def test_a_source_without_a_row(tokenizer_dir, write, tmp_path):
    """Of the one document a, 90% of its bytes held out, training keeps bos alone, which nothing follows."""
    files = [write(f"{text}.jsonl", [{"text": text}]) for text in ("a", "b" * 50)]
    train = [WeightedSource(file) for file in files]
    with pytest.raises(ValueError, match=naming("a.jsonl", "row")):
        TextData(tokenizer_dir, train, val_fraction=0.9, cache_dir=str(tmp_path / "cache")).setup("fit")


def test_sources_in_yaml(tokenizer_dir):
    """A list of mappings becomes sources; the weight defaults to 1; lists of files stay what they are."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="x")
    parser.add_class_arguments(TextData, "data")
    given = f"--data.tokenizer={tokenizer_dir}"
    train = "[{files: a.jsonl, weight: 0.7}, {files: [b.jsonl, c.jsonl], name: code}]"
    data = parser.instantiate_classes(parser.parse_args([given, f"--data.train={train}"])).data
    assert data._weighted == [WeightedSource("a.jsonl", 0.7), WeightedSource(["b.jsonl", "c.jsonl"], 1.0, "code")]
    assert files_of(data._weighted) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert parser.parse_args([given, "--data.train=[a, b]"]).data.train == ["a", "b"]


class Accumulator(pl.LightningModule):
    """A weight that depends on every token seen, and on their order."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64, dtype=torch.float64))
        self.kill_at = kill_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return (self.weight[batch.ids[:, 1:].flatten() % 64] * (batch.ids[:, 1:].flatten() + 1)).sin().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def train(data, folder, steps, *, kill_at=None, resume=None):
    """Train, saving every 3 steps; the final weights as bytes."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, filename="last", every_n_train_steps=3, enable_version_counter=False)],
    )
    model = Accumulator(kill_at)
    trainer.fit(model, data, ckpt_path=resume)
    return model.weight.detach().numpy().tobytes()


@pytest.mark.parametrize(
    "given",
    [{}, {"streaming": True, "shuffle_buffer": 5}, {"streaming": True, "shuffle_buffer": 5, "workers": 1}],
    ids=["cached", "streamed", "streamed by workers"],
)
def test_bitwise_identical_after_a_kill(tokenizer_dir, write, tmp_path, given):
    """Killed with SIGKILL in step 8 of 20, the last checkpoint two steps before: resumed, the same weights."""
    files = sources(write)

    def data():
        common = {"context": 16, "batch_size": 3, "cache_dir": str(tmp_path / "cache")}
        return TextData(tokenizer_dir, files, **common, **given)

    whole = train(data(), tmp_path / "whole", 20)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(data(), tmp_path / "killed", 20), kwargs={"kill_at": 8}
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert train(data(), tmp_path / "killed", 20, resume=tmp_path / "killed" / "last.ckpt") == whole


def test_a_share_too_small_to_ever_be_read_is_refused():
    """An epoch that reads every source would have more rows than float64 counts."""
    with pytest.raises(ValueError, match=naming("train", "weight", 1e-12)):
        mixture(1e-12, 1.0)
    assert mixture(1e-8, 1.0).counts(100).tolist() == [0, 100]
