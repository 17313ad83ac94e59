"""Loaders of pairs and prompts, and what Lightning and torch do with their batches."""

import json
import pickle
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from naming import naming

from align.batches import PairBatch, PromptBatch
from align.data.formats.pairs import Preference
from align.data.pair_data import PreferenceData, PromptData
from align.data.sampler import BatchOrder, ResumableLoader

PAD = 256
A, B = (ord(letter) - 33 for letter in "ab")


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


COUNT = 23


@pytest.fixture(scope="module", params=[PreferenceData, PromptData])
def many(request, tokenizer_dir, tmp_path_factory):
    """23 pairs, or prompts, of many lengths; the text of each is its number."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    records = [
        {"prompt": str(n), "chosen": "a" * int(rng.integers(1, 40)), "rejected": "b" * int(rng.integers(1, 40))}
        for n in range(COUNT)
    ]
    (folder / "many.json").write_text(json.dumps(records))
    data = request.param(tokenizer_dir, str(folder / "many.json"), context=64, cache_dir=str(folder / "cache"))
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def by_prompt(tokenizer_dir, tmp_path_factory):
    """Prompts p0 to p6 with 1 to 4 pairs, 16 in all: p0 once, p1 twice, p2 three times, p3 four times, p4 once ..."""
    folder = tmp_path_factory.mktemp("by_prompt")
    records = [pair(f"p{n}", "a" * (m + 1), "b" * (n + 1)) for n in range(7) for m in range(n % 4 + 1)]
    (folder / "pairs.json").write_text(json.dumps(records))
    data = PreferenceData(
        tokenizer_dir,
        str(folder / "pairs.json"),
        by_prompt=True,
        context=64,
        batch_size=3,
        cache_dir=str(folder / "cache"),
    )
    data.setup("fit")
    return data


def test_all_pairs_of_a_prompt_share_a_batch(by_prompt):
    loader = by_prompt.train_dataloader()
    for _ in range(3):
        batches = list(loader)
        assert [len(set(batch.prompts)) for batch in batches] in ([3, 3, 1], [3, 1, 3], [1, 3, 3])
        assert sorted(n for batch in batches for n in batch.numbers.tolist()) == list(range(16))
        for batch in batches:
            assert all(batch.prompts.count(prompt) == int(prompt[1]) % 4 + 1 for prompt in batch.prompts)


def test_pairs_in_order_are_still_pairs(by_prompt):
    numbers = [batch.numbers.tolist() for batch in by_prompt.record_loader("train")]
    assert numbers == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, -1, -1]]
    assert by_prompt.describe()["train"]["pairs"] == 16


def test_a_place_among_prompts_is_none_among_pairs(by_prompt, monkeypatch):
    state = by_prompt.train_dataloader().state_dict()
    monkeypatch.setattr(by_prompt, "by_prompt", False)
    with pytest.raises(ValueError, match=r"by_prompt|rows"):
        by_prompt.train_dataloader().load_state_dict(state)


def test_a_batch_of_no_prompt_is_padding(by_prompt):
    batch = by_prompt._train_dataset()[np.array([-1, -1])]
    assert (batch.numbers.tolist(), batch.lengths.tolist()) == ([-1], [0, 0])


cases = st.builds(
    dict, batch_size=st.integers(1, 8), ranks=st.integers(1, 3), seed=st.integers(0, 3), number=st.integers(0, 30)
)


def loaders(data, case):
    dataset = data._datasets["train"]
    return [
        ResumableLoader(
            dataset,
            BatchOrder(len(dataset), case["batch_size"], case["seed"], case["ranks"], rank, dataset.sort_widths),
        )
        for rank in range(case["ranks"])
    ]


@given(case=cases)
def test_every_record_once_a_pass(many, case):
    """Over all ranks together, but for fewer than ``ranks`` left out; what fills up has no tokens, no text and the
    number -1; what is real has the text of its number, and its tokens are where the lengths say."""
    seen = []
    for loader in loaders(many, case):
        for batch in loader:
            numbers = batch.numbers.tolist()
            assert batch.prompts == tuple(str(n) if n >= 0 else "" for n in numbers)
            halves = len(batch.lengths) // len(numbers)
            assert ((batch.lengths > 0) == torch.tensor([n >= 0 for n in numbers] * halves)).all()
            beyond = torch.arange(batch.ids.shape[1]) >= batch.lengths[:, None]
            assert ((batch.ids == PAD) == beyond).all()
            assert batch.ids.shape[1] == batch.lengths.max() or (halves == 2 and batch.ids.shape[1] % 8 == 1)
            if isinstance(batch, PairBatch):
                starts = batch.prompt_lengths.repeat(2)
                column = torch.arange(batch.ids.shape[1])
                assert ((column >= starts[:, None]) & ~beyond == batch.mask).all()
                assert ((batch.prompt_lengths == 0) == (batch.numbers < 0)).all()
                half = len(numbers)
                assert (batch.ids[:half][batch.mask[:half]] != B).all()
                assert (batch.ids[half:][batch.mask[half:]] != A).all()
            seen += [n for n in numbers if n >= 0]
    assert len(seen) == len(set(seen)) == COUNT - COUNT % case["ranks"]


@given(case=cases)
def test_resumed_at_any_batch(many, case):
    """Stopped after ``number`` batches, a new loader continues with the same batches, across the ends of passes."""

    def take(loader, count):
        batches = []
        while len(batches) < count:
            for batch in loader:
                batches.append([part.tolist() if isinstance(part, torch.Tensor) else part for part in batch])
                if len(batches) == count:
                    break
        return batches

    for loader, resumed in zip(loaders(many, case), loaders(many, case), strict=True):
        take(loader, case["number"])
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert take(loader, 5) == take(resumed, 5)


def test_pair_loader_is_in_order(build):
    """Every pair once, in the order of the file; held-out pairs are numbered from 0."""
    records = [pair(str(n), "a" * (n + 1), "b") for n in range(10)]
    data = build(PreferenceData, *records, val_fraction=0.3, batch_size=2, context=32)
    for split, first, count in (("train", 0, 7), ("validation", 7, 3)):
        batches = list(data.record_loader(split))
        numbers = [n for batch in batches for n in batch.numbers.tolist() if n >= 0]
        texts = [prompt for batch in batches for prompt in batch.prompts if prompt]
        assert numbers == list(range(count))
        assert texts == [str(first + n) for n in range(count)]
    with pytest.raises(ValueError, match=naming("test", "train", "validation")):
        data.record_loader("test")


def test_pairs_of_similar_length_share_a_batch(build):
    """20 pairs whose longer answers have 1-20 letters: batches of 4 neighbours."""
    lengths = np.random.default_rng(0).permutation(20) + 1
    data = build(PreferenceData, *(pair("x", "a" * int(n), "b") for n in lengths), batch_size=4, context=32)
    for batch in data.train_dataloader():
        longest = batch.lengths[:4]
        assert longest.max() - longest.min() == 3


def test_identity(build, tokenizer_dir, with_template):
    """Content, template, context, format and the part of the file decide; order, batches and file names don't."""
    records = [pair("a", "b", "c"), pair("d", "e", "f"), pair("a", "c", "b")]
    settings = {"context": 16, "val_fraction": 0.3}
    whole = build(PreferenceData, *records, **settings)
    identities = {whole.identity("train"), whole.identity("validation")}
    assert build(PreferenceData, *records, **settings, batch_size=3, seed=5).identity("train") in identities
    for other in (
        build(PreferenceData, *records[::-1], **settings),
        build(PreferenceData, *records, context=17, val_fraction=0.3),
        build(PreferenceData, *records, context=16),
        build(PreferenceData, *records, **settings, format=Preference()),
        build(PreferenceData, *records, **settings, tokenizer=with_template()),
    ):
        identities.add(other.identity("train"))
    assert len(identities) == 7


def test_a_resumed_run_with_other_pairs_is_refused(build):
    """As many pairs, other ones."""
    state = build(PreferenceData, pair("a", "b", "c")).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=naming("data", state["data"])):
        build(PreferenceData, pair("a", "b", "d")).train_dataloader().load_state_dict(state)


# What Lightning and torch do with batches.


@pytest.mark.parametrize("kind", [PreferenceData, PromptData])
def test_batches_survive_moves_pinning_and_workers(build, monkeypatch, kind):
    """Moved to another device, pinned (as torch's loader does where there is a GPU) and sent by a worker, a batch is of
    its type and its texts are the same tuple of str."""
    from torch.utils.data._utils.pin_memory import pin_memory

    data = build(kind, *(pair(f"p{n}é", "b", "c") for n in range(3)), context=32, batch_size=2, workers=1)
    batches = list(data.train_dataloader())
    batch = batches[0]
    assert isinstance(batch, PairBatch if kind is PreferenceData else PromptBatch)
    assert {prompt for batch in batches for prompt in batch.prompts} == {"p0é", "p1é", "p2é", ""}
    moved = move_data_to_device(batch, torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    for other in (batch, moved, pin_memory(batch), pickle.loads(pickle.dumps(batch))):
        assert type(other) is type(batch)
        assert type(other.prompts) is tuple
        assert other.prompts == batch.prompts
        assert other.ids.shape == batch.ids.shape
    assert moved.ids.device.type == "meta"


class Taker(pl.LightningModule):
    """Turns prompts into twice as many batches, and remembers both."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def rollout_loader(self, prompts):
        return Twice(prompts)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.prompts)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        assert isinstance(batch, PromptBatch)
        self.validated.append(batch.prompts)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Twice:
    """Every batch of prompts two times."""

    def __init__(self, prompts):
        self.prompts = prompts

    def __len__(self):
        return 2 * len(self.prompts)

    def __iter__(self):
        return (batch for batch in self.prompts for _ in range(2))


def test_a_stage_may_roll_out_prompts(build):
    """Four prompts in batches of 2 are 4 steps; validation gets the prompts themselves. Without such a stage the train
    loader yields prompts and resumes."""
    data = build(PromptData, *({"prompt": letter} for letter in "abcdef"), val_fraction=0.3, batch_size=2, context=8)
    assert isinstance(data.train_dataloader(), ResumableLoader)
    stage = Taker()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, data)
    assert stage.seen[0] == stage.seen[1]
    assert sorted("".join(map("".join, stage.seen))) == list("aabbccdd")
    assert stage.validated[-1] == ("e", "f")


def test_settings_reach_the_command_line():
    """jsonargparse shows the settings of both kinds, with their meaning."""
    from jsonargparse import ArgumentParser

    for kind, setting in ((PreferenceData, "--data.format FORMAT"),
                          (PromptData, "--data.max_prompt_tokens")):  # fmt: skip
        parser = ArgumentParser(prog="x")
        parser.add_class_arguments(kind, "data")
        shown = " ".join(parser.format_help().split())
        for part in (setting, "--data.context", "--data.val_fraction", "--data.on_bad_record {stop,skip}"):
            assert part in shown


@pytest.mark.parametrize("kind", [PreferenceData, PromptData])
def test_real_file(tokenizer_dir, tmp_path, kind):
    """1,100 records; six pairs prefer nothing and are left out. A prompt needs no answers."""
    file = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "preferences-1100.json"
    if not file.exists():
        pytest.skip("needs ../shared/data/preferences-1100.json")
    settings = {"context": 512, "val_fraction": 0.1, "cache_dir": str(tmp_path)}
    data = kind(tokenizer_dir, str(file), on_bad_record="skip", **settings)
    data.setup("fit")
    numbers = data.describe()
    name, total = ("pairs", 1094) if kind is PreferenceData else ("prompts", 1100)
    assert sum(numbers[split][name] for split in numbers) == total
    if kind is PreferenceData:
        assert numbers["train"]["truncated_pairs"] == 0
        with pytest.raises(ValueError, match=naming(file, 123, "chosen", "rejected")):
            kind(tokenizer_dir, str(file), **settings).setup("fit")
