"""A real Lightning Trainer, stopped and resumed, sees the batches it would have seen."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData, TextData


class Recorder(pl.LightningModule):
    """Learns nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.ids.tolist())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch.ids.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def fit(tokenizer_dir, write, tmp_path):
    """``fit(steps, resume)``: train on 12 rows, 5 batches of 2 for 10 training rows, saving every step."""
    letters = "abcdefghijkl"
    text = write("text.jsonl", [{"text": letter * 5} for letter in letters])
    chats = write(
        "chats.jsonl",
        [{"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": x * n}]}
         for n, x in enumerate(letters, 1)],
    )  # fmt: skip

    pairs = write(
        "pairs.jsonl",
        [{"prompt": x, "chosen": x * n, "rejected": "-"} for n, x in enumerate(letters, 1)],
    )

    def fit(steps, *, resume=None, kind=TextData, workers=0, at_epoch_end=False, **trainer):
        common = {"val_fraction": 1 / 6, "batch_size": 2, "workers": workers, "cache_dir": str(tmp_path / "cache")}
        if kind is TextData:
            data = TextData(tokenizer_dir, text, context=6, packing="best_fit", **common)
        else:
            data = kind(tokenizer_dir, chats if kind is ChatData else pairs, context=32, **common)
        model = Recorder()
        checkpoints = ModelCheckpoint(
            tmp_path / "checkpoints",
            filename="{step}",
            every_n_train_steps=1,
            save_top_k=-1,
            save_on_train_epoch_end=at_epoch_end,
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            callbacks=[checkpoints],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=1,
            **trainer,
        )
        trainer.fit(model, data, ckpt_path=resume and str(tmp_path / "checkpoints" / f"step={resume}.ckpt"))
        return model

    return fit


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [TextData, ChatData, PreferenceData, PromptData])
def test_resume_gives_the_rest(fit, kind, workers):
    """13 steps of 5-batch passes; stopped within a pass (3, 8) and at a pass's end (5, 10), the rest is the same. A
    pair is two rows."""
    whole = fit(13, kind=kind, workers=workers).seen
    assert len(whole) == 13
    first, second = ({tuple(token for token in row if token != 256) for batch in part for row in batch}
                     for part in (whole[:5], whole[5:10]))  # fmt: skip
    assert first == second
    assert len(first) == (20 if kind is PreferenceData else 10)
    for stopped in (3, 5, 8, 10) if workers == 0 else (3, 5):
        assert fit(13, resume=stopped, kind=kind, workers=workers).seen == whole[stopped:]


def test_resume_with_short_epochs(fit):
    """Epochs of 3 of 5 batches: the second epoch continues with rows not seen yet, and so does a resumed run."""
    whole = fit(10, limit_train_batches=3).seen
    rows = [str(row) for batch in whole[:5] for row in batch]
    assert len(set(rows)) == 10
    for stopped in (3, 4):
        assert fit(10, resume=stopped, limit_train_batches=3).seen == whole[stopped:]


def test_resume_with_validation_in_between(fit):
    """Validation every 2 steps: always the same held-out rows, and training is not disturbed."""
    plain = fit(9).seen
    model = fit(9, val_check_interval=2)
    assert model.seen == plain
    assert all(batch == model.validated[0] for batch in model.validated)
    assert fit(9, resume=4, val_check_interval=2).seen == plain[4:]


def test_overfit_batches_are_the_same_ones(fit):
    """Lightning's overfit_batches=2: the first two batches, again and again."""
    seen = fit(4, overfit_batches=2).seen
    assert seen[:2] == seen[2:]


@pytest.mark.parametrize("trainer", [{"at_epoch_end": True}, {"accumulate_grad_batches": 2}])
def test_resume_whatever_the_trainer_does(fit, trainer):
    """Checkpoints written when an epoch ends; two batches a step (5 batches an epoch: steps of 2, 2 and 1)."""
    whole = fit(7, **trainer).seen
    batches = {3: 3, 5: 5} if "at_epoch_end" in trainer else {2: 4, 3: 5, 4: 7}
    for step, seen in batches.items():
        assert fit(7, resume=step, **trainer).seen == whole[seen:]
