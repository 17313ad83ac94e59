"""``align serve`` as a program: its first line, its end, and what it refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from naming import error_line, names

from align.cli import main
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=2048, init_std=0.3, embedding_std=0.5
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "sft"
    (folder / "model").mkdir(parents=True)
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    tokenizer.save(folder / "model")
    save_network(GPT(CONFIG), folder / "model", bos_id=None, eos_ids=[], pad_id=None)
    return folder


@pytest.fixture
def program(stage):
    """Start the program; returns it and the address it prints."""
    started = []

    def start(*settings, **options):
        command = [sys.executable, "-m", "align", "serve", str(stage), "--port", "0", *settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        started.append(process)
        line = process.stdout.readline()
        return process, line, re.search(r"http://\S+/v1", line).group()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def engine_of(process):
    """The process id of a server's engine (Linux)."""
    spawned = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if b"spawn_main" in path.read_bytes()]
    return next(int(p.name) for p in spawned if f"PPid:\t{process.pid}\n" in (p / "status").read_text())


def has_ended(pid):
    """Whether a process is gone, or only waits for somebody to ask for its exit code."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize(
    "tell",
    [lambda process: process.send_signal(signal.SIGTERM), lambda process: os.killpg(process.pid, signal.SIGINT)],
    ids=["terminated", "Ctrl-C in a terminal, which both processes get"],
)
def test_it_ends_orderly_when_told_to(program, tell):
    """The answer under way is given whole, nobody new is let in, the exit code is 0, and no process stays."""
    settings = ["--max_concurrency", "3", "--default_new_tokens", "1500", "--max_new_tokens", "1500"]
    process, line, url = program(*settings, start_new_session=True)
    engine = engine_of(process)
    assert "http://127.0.0.1:" in line
    assert names(line, "sft", 3, 2048)
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked = {"model": "sft", "messages": [{"role": "user", "content": "hello"}], "seed": 1}
    stream = client.chat.completions.create(**asked, stream=True)
    next(stream)
    tell(process)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert has_ended(engine)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**asked)


def test_a_dead_engine_ends_the_server(program):
    process, _, _ = program()
    os.kill(engine_of(process), signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert names(errors, "align serve: error", "SIGKILL")
    assert errors.count("\n") == 1


def test_the_engine_does_not_outlive_a_killed_server(program):
    """Nobody tells it; the output ends once every process that could write to it has."""
    process, _, _ = program()
    engine = engine_of(process)
    process.kill()
    assert process.communicate(timeout=20) == ("", "")
    assert has_ended(engine)


def test_the_key_comes_from_the_environment(program):
    process, _, url = program("--api_key_env", "MY_KEY", "--host", "0.0.0.0", env={"MY_KEY": "secret", "PATH": ""})
    url = url.replace("0.0.0.0", "127.0.0.1")
    assert openai.OpenAI(base_url=url, api_key="secret").models.list().data[0].id == "sft"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="other").models.list()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        (["--api_key_env", "NO_SUCH_KEY"], 2, ["--api_key_env", "NO_SUCH_KEY"]),
        (["--port", "70000"], 2, ["--port", 70000]),
        (["--max_body_kib", "0"], 2, ["--max_body_kib", 0]),
        (["--port", "0", "--max_length", "4096"], 1, ["max_length", 4096, 2, 2048]),
        (["--port", "0", "--max_concurrency", "0"], 1, ["max_concurrency", 0, 1]),
        (["--port", "0", "--host", "203.0.113.1"], 1, ["203.0.113.1", 0]),
        (["--max_concurency", "2"], 2, ["--max_concurency", "max_concurrency"]),
    ],
)
def test_mistakes_are_one_line(stage, capsys, settings, code, named):
    assert main(["serve", str(stage), *settings]) == code
    error_line(capsys, *named, alone=True)


def test_a_port_in_use(stage, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(stage), "--port", str(port)]) == 1
    error_line(capsys, "127.0.0.1", port)
