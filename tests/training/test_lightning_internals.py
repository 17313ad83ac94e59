"""What align relies on in Lightning beyond its public interface: one test per function, on a network of one weight."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from align.training import lightning_internals as internals


class Loader(DataLoader):
    """Six batches of one row, with a state to restore."""

    def __init__(self):
        super().__init__(torch.ones(6, 1), batch_size=1)

    def state_dict(self):
        return {"position": 5}

    def load_state_dict(self, state):
        pass


class Stage(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return Loader()

    def val_dataloader(self):
        return DataLoader(torch.ones(2, 1), batch_size=1)


class Asking(pl.Callback):
    """Calls ``ask(trainer)`` at the end of every training batch, and counts validation batches."""

    def __init__(self, ask):
        self.ask = ask
        self.answers = []
        self.validated = []
        self.interrupt = False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.answers.append(self.ask(trainer))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.interrupt:
            raise InterruptedError
        self.validated.append(trainer.global_step)


def fit(tmp_path, ask=lambda trainer: None, *, ckpt_path=None, callbacks=(), **settings):
    asking = Asking(ask)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    trainer = pl.Trainer(**{"max_epochs": 1, **quiet, **settings}, callbacks=[asking, *callbacks])
    trainer.fit(Stage(), ckpt_path=ckpt_path)
    return trainer, asking


def test_attached_trainer(tmp_path):
    assert internals.attached_trainer(Stage()) is None
    trainer, _ = fit(tmp_path)
    assert internals.attached_trainer(trainer.lightning_module) is trainer


def test_batch_index_counts_over_epochs(tmp_path):
    _, asking = fit(tmp_path, internals.batch_index, max_epochs=2, limit_train_batches=3)
    assert asking.answers == [0, 1, 2, 3, 4, 5]


def test_is_last_batch(tmp_path):
    _, asking = fit(tmp_path, internals.is_last_batch, max_epochs=2, limit_train_batches=3)
    assert asking.answers == [False, False, True] * 2


def test_accumulating(tmp_path):
    """Steps after batches 2, 4 and, at the epoch's end, 5."""
    _, asking = fit(tmp_path, internals.accumulating, accumulate_grad_batches=2, limit_train_batches=5)
    assert asking.answers == [True, False, True, False, False]


def test_validation_follows(tmp_path):
    _, asking = fit(tmp_path, internals.validation_follows, val_check_interval=2)
    assert asking.answers == [False, True] * 3


def test_skip_batches_ends_the_epoch(tmp_path):
    """Batches 0 and 1 of six are trained on in each epoch, which then validates as usual."""

    def skip(trainer):
        if internals.batch_index(trainer) % 6 == 1 or trainer.global_step == 4:
            internals.skip_batches(trainer, 4)

    trainer, asking = fit(tmp_path, skip, max_epochs=2)
    assert trainer.global_step == len(asking.answers) == 4
    assert asking.validated == [2, 2, 4, 4]
    assert trainer.current_epoch == 2


class Saving(pl.Callback):
    """Saves a checkpoint after a step, with an earlier position of the training loop if asked to."""

    def __init__(self, path, *, step, position=None):
        self.path, self.step, self.position = path, step, position
        self.earlier = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.position:
            self.earlier = internals.fit_loop_state(trainer)
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if self.earlier is not None:
            internals.replace_fit_loop(checkpoint, self.earlier)


def test_positions_in_a_checkpoint(tmp_path):
    fit(tmp_path, callbacks=[Saving(tmp_path / "a.ckpt", step=3)])
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert internals.stored_data_position(checkpoint) == {"position": 5}
    assert internals.stored_data_position({"state_dict": {}}) is None
    assert internals.stored_fit_loop({"state_dict": {}}) is None


def test_an_earlier_position_of_the_loop_is_resumed_from(tmp_path):
    """Saved after step 4 with the position after step 2: four of six batches are left, two steps are made again."""
    fit(tmp_path, callbacks=[Saving(tmp_path / "a.ckpt", step=4, position=2)])
    stored = internals.stored_fit_loop(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert stored["epoch_loop.batch_progress"]["current"]["ready"] == 2
    _, asking = fit(tmp_path, internals.batch_index, ckpt_path=tmp_path / "a.ckpt")
    assert asking.answers == [2, 3, 4, 5]


def test_validation_before_the_first_batch(tmp_path):
    """Two batches at step 0, in evaluation mode; training then goes on as usual, and validates after its six steps."""
    begun = []

    class Ask(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            begun.append(internals.batches_begun(trainer))
            internals.validate_now(trainer)
            assert trainer.training
            assert pl_module.training

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            assert not pl_module.training

    trainer, asking = fit(tmp_path, internals.batches_begun, callbacks=[Ask()])
    assert begun == [0]
    assert asking.answers == [1, 2, 3, 4, 5, 6]
    assert asking.validated == [0, 0, 6, 6]
    assert trainer.global_step == 6


@pytest.mark.parametrize("repeat", [False, True])
def test_repeat_validation(tmp_path, repeat):
    """A checkpoint saved inside the validation after step 3: the resumed run repeats it only if told to."""

    class Interrupted(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if trainer.global_step == 3 and batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                raise InterruptedError

    class Repeating(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            if repeat:
                internals.repeat_validation(trainer)

    with pytest.raises(InterruptedError):
        fit(tmp_path, callbacks=[Interrupted()], val_check_interval=3)
    _, asking = fit(tmp_path, ckpt_path=tmp_path / "a.ckpt", callbacks=[Repeating()], val_check_interval=3)
    assert asking.validated == [3, 3] * repeat + [6, 6]


def test_force_validation(tmp_path):
    """Every fifth batch by the schedule, but after the second too; twice two batches, and the schedule as it was."""
    schedules = []

    def ask(trainer):
        schedules.append(trainer.val_check_batch)
        if trainer.global_step == 2:
            restore.append(internals.force_validation(trainer))

    class Restoring(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            while restore:
                restore.pop()()

    restore = []
    _, asking = fit(tmp_path, ask, callbacks=[Restoring()], val_check_interval=5)
    assert asking.validated == [2, 2, 5, 5]
    assert schedules == [5] * 6


def test_force_validation_in_an_epoch_without_any(tmp_path):
    def ask(trainer):
        if internals.is_last_batch(trainer):
            internals.force_validation(trainer)

    _, asking = fit(tmp_path, ask, check_val_every_n_epoch=3, limit_train_batches=3)
    assert asking.validated == [3, 3]
