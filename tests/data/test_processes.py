"""Several processes at once: real ones."""

import json
import multiprocessing
import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from align.data.formats.texts import Text
from align.data.text_data import TextData


def _prepare(tokenizer, train, cache, barrier):
    data = TextData(tokenizer, train, cache_dir=cache)
    barrier.wait(30)
    data.prepare_data()


def test_two_processes_prepare_the_same_files(tokenizer_dir, write, tmp_path):
    """Both end well, one corpus is left, and it is whole: 500 documents of 1 letter, bos and eos."""
    train = write("a.jsonl", [{"text": "a"}] * 500)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (tokenizer_dir, train, str(tmp_path / "cache"), barrier)
    processes = [context.Process(target=_prepare, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    data = TextData(tokenizer_dir, train, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    assert data.describe()["train"]["tokens"] == 1500


def _die_while_writing(tokenizer, train, cache):
    data = TextData(tokenizer, train, cache_dir=cache)
    Text.text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # in this process only
    data.prepare_data()


def test_killed_while_writing(tokenizer_dir, write, tmp_path):
    """Nothing stands under the corpus's name but a draft; the next process makes it whole: a, bos and eos."""
    train, cache = write("a.jsonl", [{"text": "a"}]), tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(
        target=_die_while_writing, args=(tokenizer_dir, train, str(cache))
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[0] for path in cache.iterdir()] == ["."]
    data = TextData(tokenizer_dir, train, cache_dir=str(cache))
    data.setup("fit")
    assert data.describe()["train"]["tokens"] == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_tokenizing_on_several_processes_gives_the_same(tokenizer_dir, write, tmp_path, processes):
    """Three chunks of more than a million characters, in order: the text comes back."""
    texts = [letter * 1_100_000 for letter in "abc"]
    train = write("a.jsonl", [{"text": text} for text in texts])
    data = TextData(tokenizer_dir, train, cache_dir=str(tmp_path / "cache"), processes=processes)
    data.setup("fit")
    corpus = data._datasets["train"].corpus
    assert corpus.offsets.tolist() == [0, 1_100_002, 2_200_004, 3_300_006]
    assert data.tokenizer.decode(corpus.ids[1_100_000:1_100_005].tolist()) == "a" + "b" * 2


class Recorder(pl.LightningModule):
    """Writes what its rank was shown into a file."""

    def __init__(self, folder):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder = folder

    def training_step(self, batch, batch_idx):
        with open(self.folder / f"train{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(batch.ids.tolist()) + "\n")
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        with open(self.folder / f"validation{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(batch.ids.tolist()) + "\n")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.slow
def test_two_ranks_share_a_pass_and_resume(tokenizer_dir, write, tmp_path):
    """11 training and 5 validation rows on 2 ranks, batches of 2: a pass is 10 rows (1 left out), 3 batches a rank;
    validation shows every row once. Stopped after 4 steps and resumed, both ranks get the rest."""
    letters = "abcdefghijklmnop"
    train = write("train.jsonl", [{"text": letter * 5} for letter in letters[:11]])
    validation = write("validation.jsonl", [{"text": letter * 5} for letter in letters[11:]])

    def fit(name, steps, resume=None):
        folder = tmp_path / name
        folder.mkdir()
        data = TextData(
            tokenizer_dir,
            train,
            validation=validation,
            context=6,
            packing="best_fit",
            batch_size=2,
            cache_dir=str(tmp_path / "cache"),
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp_fork",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=[ModelCheckpoint(folder, filename="end", every_n_train_steps=steps)],
        )
        trainer.fit(Recorder(folder), data, ckpt_path=resume)
        read = {}
        for path in folder.glob("*.jsonl"):
            read[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
        return read

    def rows(batches):
        return sorted(row[1] for batch in batches for row in batch if row[1] != 256)

    whole = fit("whole", 7)
    first_pass = rows(whole["train0"][:3] + whole["train1"][:3])
    assert len(first_pass) == len(set(first_pass)) == 10
    assert rows(whole["validation0"][:2] + whole["validation1"][:2]) == [ord(letter) - 33 for letter in letters[11:]]
    fit("half", 4)
    rest = fit("rest", 7, resume=tmp_path / "half" / "end.ckpt")
    assert [rest["train0"], rest["train1"]] == [whole["train0"][4:], whole["train1"][4:]]
