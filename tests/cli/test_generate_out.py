"""``align generate --out``: a killed run resumes where it was, and only with what it began with."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from naming import error_line, names
from safetensors.torch import load_file, save_file

from align.cli import main
from align.engines import ours
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64, init_std=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a file of three prompts."""
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    (tmp_path / "model").mkdir()
    tokenizer.save(tmp_path / "model")
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(GPT(CONFIG), tmp_path / "model", **ids)
    records = [{"prompt": text, "answer": 1} for text in ("a", "b", "c")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def command(folder: Path, out: str, *more: str) -> list[str]:
    """Six samples in batches of two."""
    words = ["generate", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"), "--n", "2"]
    words += ["--judge", "exact_answer", "--batch_size", "2", "--max_new_tokens", "4", "--show", "0"]
    return [*words, "--out", str(folder / out), *more]


def killed_in_second_batch(folder: Path) -> None:
    real, calls = ours.sample_responses, []

    def sample(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    ours.sample_responses = sample
    main(command(folder, "out.jsonl"))


@pytest.fixture
def killed(folder: Path) -> Path:
    """The folder after a run that was killed in its second batch of three, and another that was not."""
    process = multiprocessing.get_context("fork").Process(target=killed_in_second_batch, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "out.jsonl").exists()
    return folder


@pytest.mark.parametrize("torn", [b"", b'[{"prompt": "b', b"\xff"])
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(killed: Path, monkeypatch, capsys, torn: bytes):
    log = killed / ".out.jsonl.partial"
    with log.open("ab") as file:
        file.write(torn)
    calls, real = [], ours.sample_responses
    monkeypatch.setattr(ours, "sample_responses", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    assert main(command(killed, "whole.jsonl")) == 0
    assert len(calls) == 3
    capsys.readouterr()
    shutil.move(killed / "model", killed / "moved")
    assert main([*command(killed, "out.jsonl")[:1], str(killed / "moved"), *command(killed, "out.jsonl")[2:]]) == 0
    assert len(calls) == 3 + 2
    assert names(capsys.readouterr().err, 2, log)
    assert (killed / "out.jsonl").read_bytes() == (killed / "whole.jsonl").read_bytes()
    assert len((killed / "out.jsonl").read_text().splitlines()) == 6
    assert not log.exists()


def test_a_killed_run_does_not_resume_with_other_settings_prompts_or_weights(killed: Path, capsys):
    log = killed / ".out.jsonl.partial"
    kept = log.read_bytes()
    assert main(command(killed, "out.jsonl", "--temperature", "0.5", "--seed", "7")) == 1
    line = error_line(capsys, log, "temperature", 0.5, 1.0, "seed", 7, 0)
    assert not names(line, "top_k")
    prompts = killed / "prompts.jsonl"
    text = prompts.read_text()
    prompts.write_text(text.replace('"b"', '"B"'))
    assert main(command(killed, "out.jsonl")) == 1
    error_line(capsys, log, "prompts")
    prompts.write_text(text)
    tensors = load_file(killed / "model/model.safetensors")
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(changed, killed / "model/model.safetensors", {"format": "pt"})
    assert main(command(killed, "out.jsonl")) == 1
    error_line(capsys, log, "model.weights")
    assert log.read_bytes() == kept
