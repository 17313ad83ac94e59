"""Columns of the records that a stage's rewards read: stored beside the prompts, and missed before training."""

from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest

from align.data.columns import columns_of
from align.data.pair_data import PreferenceData, PromptData
from align.data.readers import BadRecordError

PROMPTS = [
    {"prompt": f"p{i}", "answer": f"#### {i}", "tests": [i, {"in": "\u00e9"}], "unread": "x" * i} for i in range(6)
]
PAIRS = [record | {"chosen": "a", "rejected": "b" * (1 + i)} for i, record in enumerate(PROMPTS)]


def reading(**columns: tuple[str, ...]):
    """A Trainer whose stage reads columns of some splits."""
    stage = SimpleNamespace(reward_columns=lambda split: columns.get(split, ()))
    return SimpleNamespace(lightning_module=stage, distributed_sampler_kwargs=None, overfit_batches=0)


@pytest.fixture
def make(tokenizer_dir, tmp_path):
    """``make(kind, trainer, train, **settings)``: data that were set up for training."""

    def make(kind, trainer, train, **settings):
        defaults = {"context": 32, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
        data = kind(tokenizer_dir, train, **defaults | settings)
        data.trainer = trainer
        data.prepare_data()
        data.setup("fit")
        return data

    return make


@pytest.mark.parametrize(("kind", "records"), [(PromptData, PROMPTS), (PreferenceData, PAIRS)])
def test_a_batch_has_the_columns_of_its_prompts(make, write, kind, records):
    """In the order of the shuffled rows, with nothing for padding, and nothing that no reward reads."""
    data = make(kind, reading(train=("tests", "answer")), write("records.jsonl", records))
    for batch in data.train_dataloader():
        assert len(batch.columns) == 4
        for prompt, columns in zip(batch.prompts, batch.columns, strict=True):
            number = int(prompt[1:]) if prompt else None
            assert columns == ({} if number is None else {name: records[number][name] for name in ("answer", "tests")})
    everything = data._datasets["train"][np.arange(6)]
    assert everything.prompts == tuple(f"p{i}" for i in range(6))


def test_two_ranks_have_the_columns_of_their_prompts(make, write):
    file = write("records.jsonl", PROMPTS)
    seen = []
    for rank in range(2):
        trainer = reading(train=("answer",))
        trainer.distributed_sampler_kwargs = {"num_replicas": 2, "rank": rank}
        for batch in make(PromptData, trainer, file, batch_size=2).train_dataloader():
            seen += zip(batch.prompts, batch.columns, strict=True)
    pairs = [(prompt, columns["answer"]) for prompt, columns in seen if prompt]
    assert sorted(pairs) == [(f"p{i}", f"#### {i}") for i in range(6)]


@pytest.mark.parametrize("missing", [{"prompt": "p"}, {"prompt": "p", "answer": None}, {"prompt": "p", "answr": "1"}])
def test_a_missing_column_names_file_and_line(make, write, missing):
    file = write("records.jsonl", [*PROMPTS[:2], missing, *PROMPTS[2:]])
    hint = ".*did you mean 'answr'" if "answr" in missing else ""
    with pytest.raises(BadRecordError, match=rf"records\.jsonl: line 3: field 'answer' is missing{hint}") as error:
        make(PromptData, reading(train=("answer",)), file)
    assert "\n" not in str(error.value)
    data = make(PromptData, reading(train=("answer",)), file, on_bad_record="skip")
    assert len(data._datasets["train"]) == 6
    assert "line 3" in data._datasets["train"].corpus.meta["report"][0]


def test_only_the_splits_whose_rewards_read_a_column_need_it(make, write):
    """What is held out of the training file is read by both."""
    plain, whole = write("plain.jsonl", [{"prompt": "p"}] * 4), write("whole.jsonl", PROMPTS)
    data = make(PromptData, reading(validation=("answer",)), plain, validation=whole)
    (batch, *_) = data.val_dataloader()
    assert batch.columns == tuple({"answer": f"#### {i}"} for i in range(4))
    with pytest.raises(BadRecordError, match=r"plain\.jsonl: line 1"):
        make(PromptData, reading(validation=("answer",)), plain, val_fraction=0.5)


def test_another_stage_of_the_same_data_gets_its_own_columns(make, write):
    data = make(PromptData, reading(), write("records.jsonl", PROMPTS))
    assert data._datasets["train"][np.array([1])].columns == ({},)
    data.trainer = reading(train=("answer",))
    data.setup("fit")
    assert data._datasets["train"][np.array([1])].columns == ({"answer": "#### 1"},)


def test_columns_are_no_part_of_the_position(make, write):
    """A run resumes with a judge that reads more; unless records without the column were skipped."""
    file = write("records.jsonl", PROMPTS)
    readers = [reading(train=columns) for columns in ((), ("tests",))]
    for policy, same in (("stop", True), ("skip", False)):
        plain, more = (make(PromptData, reader, file, on_bad_record=policy)._identity() for reader in readers)
        assert (plain == more) == same
    first, second = (make(PreferenceData, reader, write("pairs.jsonl", PAIRS)) for reader in readers)
    assert first.identity("train") == second.identity("train"), "reference log-probs are not computed again"


def test_a_value_that_json_lacks_is_named():
    assert columns_of({"a": 0, "b": "", "c": [], "d": {"e": 1.5}}, ["a", "b", "c", "d"]) == {
        "a": 0,
        "b": "",
        "c": [],
        "d": {"e": 1.5},
    }
    with pytest.raises(ValueError, match="field 'day'.*date is not JSON serializable"):
        columns_of({"day": date(2020, 1, 1)}, ["day"])
