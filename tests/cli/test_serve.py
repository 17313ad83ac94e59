"""``align serve``: what clients of OpenAI's API get, how it starts and ends, and what it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.request import Request, urlopen

import openai
import pytest
import torch
from naming import error_line, names

from align.cli import main
from align.cli.serving import VLLM, Address, LlamaCpp, Server, ServeSettings, free_address
from align.export import gguf_cache
from align.generation.responses import sample_responses
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network, save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer, train_tokenizer

CONFIG = GPTConfig(
    vocab_size=300, layers=1, heads=2, width=32, ff_width=32, context=512, init_std=0.3, embedding_std=0.5
)
TOKENIZER = train_tokenizer(
    ["the owl that hooted by the river heard another owl, and they hooted together"], vocab_size=300
)
MESSAGES = [{"role": "user", "content": "together"}]
ASKED = {"model": "sft", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def save(network, directory):
    """A model directory of a network and the tokenizer."""
    directory.mkdir(parents=True)
    TOKENIZER.save(directory)
    save_network(network, directory, bos_id=TOKENIZER.bos_id, eos_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id)


def network_of(config, seed=1):
    network = GPT(config)
    network.initialise(seed)
    return network


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "sft"
    save(network_of(CONFIG), folder / "model")
    return folder


class Program:
    """The command in a process of its own."""

    def __init__(self, stage, *words, **environment):
        command = [sys.executable, "-m", "align", "serve", str(stage), "--port", "0", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.url = self.process.stdout.readline().strip()
        self.curl = self.process.stdout.readline() + self.process.stdout.readline()

    def client(self, key="secret"):
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0)

    def end(self, number):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def program(stage, tmp_path_factory):
    """A server with a key from the environment and four slots."""
    words = ["--slots", "4", "--cache_dir", str(tmp_path_factory.mktemp("gguf"))]
    running = Program(stage, *words, ALIGN_API_KEY="secret")
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.fixture(scope="module")
def client(program):
    return program.client()


@pytest.fixture
def serve(tmp_path):
    """Start llama.cpp on a model; gives a client."""
    servers = []

    def start(model, **settings):
        settings = ServeSettings(slots=2, cache_dir=tmp_path / "gguf", **settings)
        address = free_address("127.0.0.1", 0)
        servers.append(Server(LlamaCpp(), Path(model), "m", address, settings))
        return openai.OpenAI(base_url=f"{address.url}/v1", api_key="none", max_retries=0)

    yield start
    for server in servers:
        server.stop()


def greedy(directory, messages, new):
    """What `align generate --temperature 0` answers."""
    tokenizer = Tokenizer.load(directory)
    ids = tokenizer.render_chat(messages, add_generation_prompt=True).ids
    sampling = SamplingConfig(temperature=0, max_new_tokens=new)
    return sample_responses(load_network(directory), tokenizer, [ids], sampling, seeds=[0])


def text(reply):
    return reply.choices[0].message.content


# -- requests --------------------------------------------------------------------------------------------------------


def test_greedy_text_is_that_of_generate(client, stage):
    """The file has the float32 weights; no other token comes nearer to a likeliest one than a third of a nat."""
    reply = client.chat.completions.create(**ASKED)
    expected = greedy(stage / "model", MESSAGES, 12)
    assert text(reply) == expected.texts[0]
    assert reply.usage.completion_tokens == len(expected.ids[0])


def test_a_stream_brings_the_same_text(client):
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text(whole)
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_json_schema_holds(client):
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    schema |= {"additionalProperties": False}
    asked = ASKED | {"max_tokens": 200, "temperature": 1, "seed": 3}
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    found = json.loads(text(client.chat.completions.create(**asked, response_format=response_format)))
    assert set(found) == {"age"}
    assert found["age"] in (1, 2)


def test_logprobs_are_those_of_the_network(client, stage):
    directory = stage / "model"
    ids = Tokenizer.load(directory).render_chat(MESSAGES, add_generation_prompt=True).ids
    with torch.no_grad():
        expected = load_network(directory)(torch.tensor([ids]))[0, -1].log_softmax(-1)
    reply = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3)
    first = reply.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(float(expected.max()), abs=0.02)
    assert [top.logprob for top in first.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=0.02)


def test_several_choices_tools_and_stop(client):
    """Tools are taken, whatever a toy makes of them; a stop sequence ends the response and is left out."""
    reply = client.chat.completions.create(**ASKED | {"temperature": 1}, n=3)
    assert len({choice.message.content for choice in reply.choices}) == 3
    reply = client.chat.completions.create(**ASKED, tools=[TOOL])
    assert reply.choices[0].finish_reason in ("stop", "length", "tool_calls")
    whole = text(client.chat.completions.create(**ASKED))
    stop = next(letter for letter in whole[1:] if " " < letter < "~")
    reply = client.chat.completions.create(**ASKED, stop=[stop])
    assert whole.startswith(text(reply))
    assert stop not in text(reply)
    assert reply.choices[0].finish_reason == "stop"


def test_requests_without_settings_sample_from_the_models_distribution(program):
    """As OpenAI's API does; llama.cpp's own are a temperature of 0.8 among the 40 likeliest tokens."""
    request = Request(f"{program.url.removesuffix('/v1')}/props", headers={"Authorization": "Bearer secret"})
    with urlopen(request) as reply:
        found = json.loads(reply.read())["default_generation_settings"]
    expected = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
    assert {name: found["params"][name] for name in expected} == expected
    assert found["n_ctx"] == 512


def test_the_key(program):
    assert [model.id for model in program.client().models.list()] == ["sft"]
    with pytest.raises(openai.AuthenticationError):
        program.client("wrong").chat.completions.create(**ASKED)
    assert "Bearer $ALIGN_API_KEY" in program.curl
    assert "secret" not in program.curl


def test_clients_that_hang_up_leave_the_server_alive(client):
    """More of them than slots, each after its first chunk."""
    whole = text(client.chat.completions.create(**ASKED))
    for _ in range(6):
        stream = client.chat.completions.create(**ASKED | {"max_tokens": 400}, stream=True)
        next(stream)
        stream.close()
    assert text(client.chat.completions.create(**ASKED)) == whole


# -- start and end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to(stage, tmp_path, number):
    """With a response under way; the exit code is 0 and nothing is logged."""
    program = Program(stage, "--cache_dir", str(tmp_path), "--host", "localhost")
    assert program.url.startswith("http://localhost:")
    stream = program.client().chat.completions.create(**ASKED | {"max_tokens": 400}, stream=True)
    next(stream)
    assert program.end(number) == (0, "")


def test_the_engine_does_not_outlive_a_killed_command(stage, tmp_path):
    program = Program(stage, "--cache_dir", str(tmp_path))
    program.process.kill()
    assert program.process.communicate(timeout=30) == ("", "")  # the engine, too, has closed the log


def test_an_engine_that_dies_ends_the_command(stage, tmp_path):
    """One line, beside what the engine itself said."""
    program = Program(stage, "--cache_dir", str(tmp_path))
    (child,) = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, errors = program.process.communicate(timeout=30)
    assert program.process.returncode == 1
    assert names(errors, "llama.cpp", -9)
    assert len(errors.splitlines()) == 1


def test_the_second_start_reads_the_cache(stage, serve, tmp_path, monkeypatch):
    first = text(serve(stage / "model").chat.completions.create(**ASKED))
    (file,) = (tmp_path / "gguf").iterdir()
    monkeypatch.setattr(gguf_cache, "write_gguf", lambda *_: pytest.fail("written again"))
    assert text(serve(stage / "model").chat.completions.create(**ASKED)) == first
    assert text(serve(file).chat.completions.create(**ASKED)) == first  # a file is served as it is


def test_the_cache_knows_weights_and_quantization(stage, tmp_path):
    cache = tmp_path / "gguf"
    save(network_of(CONFIG, seed=2), tmp_path / "other")
    files = [
        gguf_cache.cached_gguf(stage / "model", cache),
        gguf_cache.cached_gguf(stage / "model", cache, quantize="q8_0"),
        gguf_cache.cached_gguf(tmp_path / "other", cache),
    ]
    assert sorted(cache.iterdir()) == sorted(set(files))
    assert len(files) == 3
    assert files[1].stat().st_size < files[0].stat().st_size


def test_a_conversion_that_fails_leaves_nothing(stage, tmp_path, monkeypatch):
    def fail(source, directory, settings):
        (directory / "model.gguf").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(gguf_cache, "write_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        gguf_cache.cached_gguf(stage / "model", tmp_path / "gguf")
    assert list((tmp_path / "gguf").iterdir()) == []


def test_a_directory_that_transformers_wrote(serve, tmp_path):
    """A Llama with grouped keys; its own greedy tokens, each ahead by a tenth of a nat or more, are expected."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, bos_token_id=TOKENIZER.bos_id,
            eos_token_id=list(TOKENIZER.stop_ids), pad_token_id=TOKENIZER.pad_id,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    TOKENIZER.save(tmp_path / "theirs")
    prompt = torch.tensor([TOKENIZER.render_chat(MESSAGES, add_generation_prompt=True).ids])
    ids = theirs.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :]
    assert text(serve(tmp_path / "theirs").chat.completions.create(**ASKED)) == TOKENIZER.decode(ids.tolist())


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """What cannot be served: a reward model, networks that neither engine computes, files that are no model."""
    folder = tmp_path_factory.mktemp("odd")
    reward = ScalarGPT(CONFIG)
    reward.initialise_head(0)
    save(reward, folder / "reward")
    for name, other in (("postln", {"norm_placement": "post"}), ("sinusoidal", {"positions": "sinusoidal"})):
        save(GPT(GPTConfig(**asdict(CONFIG) | other)), folder / name)
    save(network_of(GPTConfig(**asdict(CONFIG) | {"width": 24, "heads": 2})), folder / "narrow")
    (folder / "text.gguf").write_text("no model")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["ODD/nothing"], 1, ["ODD/nothing"]),
        (["ODD/empty"], 1, ["ODD/empty/config.json", "ODD/empty/model/config.json"]),
        (["ODD/no.gguf"], 1, ["ODD/no.gguf"]),
        (["ODD/text.gguf"], 1, ["ODD/text.gguf", "GGUF"]),
        (["ODD/reward"], 1, ["ODD/reward", "reward"]),
        (["ODD/postln"], 1, ["ODD/postln", "norm_placement"]),
        (["ODD/sinusoidal"], 1, ["ODD/sinusoidal", "positions"]),
        (["ODD/narrow", "--quantize", "q8_0"], 1, ["24", "32", "q8_0"]),
        (["STAGE", "--context", "513"], 1, ["--context", "513", "512"]),
        (["STAGE", "--engine", "vllm"], 1, ["--engine", "vllm"]),
        (["STAGE", "--quantize", "int8"], 2, ["quantize", "int8"]),
        (["STAGE", "--slots", "0"], 2, ["--slots", "0", "1"]),
        (["STAGE", "--port", "70000"], 2, ["--port", "70000", "65535"]),
        (["STAGE", "--api_key", " "], 2, ["--api_key", "ALIGN_API_KEY"]),
        (["STAGE", "--host", "203.0.113.1"], 1, ["203.0.113.1"]),
        (["STAGE", "--slotz", "2"], 2, ["--slotz", "slots"]),
    ],
)
def test_mistakes_are_one_line(stage, odd, tmp_path, capsys, words, code, named):
    port = [] if "--port" in words else ["--port", "0"]
    words, named = (
        [word.replace("ODD", str(odd)).replace("STAGE", str(stage)) for word in row] for row in (words, named)
    )
    assert main(["serve", *words, *port, "--cache_dir", str(tmp_path)]) == code
    error_line(capsys, *named, alone=True)


def test_a_port_in_use(stage, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(stage), "--port", str(port)]) == 1
    error_line(capsys, "127.0.0.1", port, alone=True)


def test_a_missing_extra(stage, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert main(["serve", str(stage), "--port", "0", "--cache_dir", str(tmp_path)]) == 1
    error_line(capsys, "xllamacpp", "lightning-align[serve]", alone=True)


# -- vLLM ------------------------------------------------------------------------------------------------------------

STAND_IN = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "fail" in words["--served-model-name"]:
    sys.exit("no memory")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"words": words, "key": os.environ.get("VLLM_API_KEY")}).encode())
    def log_message(self, *_):
        pass

HTTPServer((words["--host"], int(words["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def vllm(tmp_path):
    """A package that looks like vLLM, and says what it was started with."""
    home = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    home.mkdir(parents=True)
    (home / "api_server.py").write_text(STAND_IN)
    return os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))])


def test_vllm_gets_the_same_settings(stage, vllm):
    words = ["--engine", "vllm", "--name", "m", "--slots", "3", "--context", "100"]
    program = Program(stage, *words, PYTHONPATH=vllm, ALIGN_API_KEY="secret")
    with urlopen(f"{program.url}/models") as reply:
        found = json.loads(reply.read())
    expected = {
        "--model": str(stage / "model"), "--served-model-name": "m", "--host": "127.0.0.1", "--max-model-len": "100",
        "--max-num-seqs": "3", "--generation-config": "vllm",
    }  # fmt: skip
    assert found["words"].items() >= expected.items()
    assert found["key"] == "secret"
    assert program.end(signal.SIGTERM) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found["words"]["--port"])))


def test_a_vllm_that_fails_is_one_line(stage, vllm):
    program = Program(stage, "--engine", "vllm", "--name", "fail", PYTHONPATH=vllm)
    _, errors = program.process.communicate(timeout=30)
    assert (program.process.returncode, program.url) == (1, "")
    assert errors.splitlines() == [
        "no memory",
        "align serve: error: vLLM ended with exit code 1; its log above says why",
    ]


def test_auto_prefers_vllm_on_a_gpu(stage, monkeypatch):
    found = []
    for installed, gpu in ((None, True), (object(), False), (object(), True)):
        monkeypatch.setattr("align.cli.serving.find_spec", lambda name, installed=installed: installed)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        found.append(VLLM().suits(stage / "model"))
    assert found == [False, False, True]
    assert not VLLM().suits(Path("model.gguf"))
    with pytest.raises(ValueError, match=r"--quantize q8_0: .*--engine llama"):
        VLLM().command(stage / "model", "m", Address("127.0.0.1", 1), ServeSettings(quantize="q8_0"))
