"""vLLM as an engine, against a fake of its server: weights, requests, failures, and processes that must not stay."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_engines import process, serving

from align.engines import VLLM, Asked, Crew, EngineError, Ours, Weights
from align.engines.probe import response_logprobs
from align.generation.sampled_ids import SampledIds
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=12, layers=2, heads=2, width=16, ff_width=32, context=24)
TOKENS = SimpleNamespace(
    vocab_size=12, pad_id=0, bos_id=2, stop_ids=(1,), missing_ids=(), decode=lambda ids: " ".join(map(str, ids))
)
PROMPTS = [[2, 3, 4], [5], [6, 7], [2, 9, 10, 3]]


def network(seed=0, config=CONFIG):
    made = GPT(config)
    made.initialise(seed)
    with torch.no_grad():
        made.output_weight.mul_(8)  # logits far enough apart for the greedy text to differ between seeds
    return made.eval()


def uniform():
    """A network that gives all of its ids the same probability, as the fake process does."""
    made = network()
    torch.nn.init.zeros_(made.output_weight)
    return made


def constant(*_):
    return [5], [-math.log(12)], False


def asked(temperature=1.0, prompts=PROMPTS, **settings):
    return Asked(prompts, SamplingConfig(temperature=temperature, max_new_tokens=6, **settings), range(len(prompts)))


def same(ours, theirs):
    assert ours.ids == theirs.ids
    assert ours.texts == theirs.texts
    assert ours.finished == theirs.finished
    for name in ("ids", "mask", "finished"):
        assert torch.equal(getattr(ours.samples, name), getattr(theirs.samples, name)), name
    assert torch.allclose(ours.samples.logprobs, theirs.samples.logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_responses_are_those_of_the_weights_that_were_given(temperature):
    """Two versions of the weights, the first of them twice: it is sent once."""
    with serving() as (server, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        for seed, version in ((0, "0"), (0, "0"), (1, "1")):
            weights = Weights(network(seed), version)
            same(Ours().open(TOKENS).sample(weights, asked(temperature)), engine.sample(weights, asked(temperature)))
        assert len(server.loaded) == server.resets == 2
        assert not Path(server.loaded[0]).exists()  # shared memory holds one version at a time
        engine.close()
        assert not Path(server.loaded[1]).parent.exists()


def test_requests_say_what_the_sampler_must_do():
    settings = {"top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5}
    with serving(constant, context=5) as (server, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        engine.sample(Weights(uniform(), "0"), asked(0.7, **settings))
        engine.close()
    probe, *sent = server.requests
    assert probe["token_ids"] == PROMPTS[0]
    sent.sort(key=lambda body: body["sampling_params"]["seed"])
    assert [body["token_ids"] for body in sent] == PROMPTS
    assert [body["sampling_params"]["max_tokens"] for body in sent] == [2, 4, 3, 1]  # what the engine has room for
    for number, body in enumerate(sent):
        params = body["sampling_params"]
        assert params | settings == params
        assert (params["temperature"], params["seed"], params["stop_token_ids"]) == (0.7, number, [1])
        assert params["ignore_eos"]
        assert params["logprobs"] == 0


def test_rows_that_are_no_tokens_are_not_sent_and_gaps_are_never_sampled():
    """16 rows for 12 ids, of which 7 is none."""
    padded = network(config=replace(CONFIG, vocab_size=16))
    torch.nn.init.zeros_(padded.output_weight)
    with serving(lambda *_: ([5], [-math.log(11)], False)) as (server, address):
        tokens = SimpleNamespace(**{**vars(TOKENS), "missing_ids": (7,)})
        engine = VLLM(addresses=(address,)).open(tokens)
        engine.sample(Weights(padded, "0"), asked(prompts=[[2, 3]]))
        config = (Path(server.model) / "config.json").read_text()
        engine.close()
    assert '"vocab_size": 12' in config
    assert server.requests[0]["sampling_params"]["logit_bias"] == {"7": -100.0}


@pytest.mark.parametrize(
    ("dtype", "rollout", "weights", "written"),
    [
        ("auto", None, torch.float32, "float32"),
        ("auto", None, torch.bfloat16, "bfloat16"),
        ("auto", "bfloat16", torch.float32, "bfloat16"),
        ("float16", None, torch.float32, "float16"),
    ],
)
def test_the_precision_of_the_engine(dtype, rollout, weights, written):
    with serving(constant) as (server, address):
        engine = VLLM(addresses=(address,), dtype=dtype).open(TOKENS)
        engine.sample(Weights(uniform().to(weights), "0"), asked(dtype=rollout))
        assert f'"dtype": "{written}"' in (Path(server.model) / "config.json").read_text()
        engine.close()


def test_responses_are_spread_over_several_engines():
    with serving() as (one, first), serving() as (two, second):
        engine = VLLM(
            addresses=(
                first,
                second,
            )
        ).open(TOKENS)
        weights = Weights(network(), "0")
        same(Ours().open(TOKENS).sample(weights, asked()), engine.sample(weights, asked()))
        assert len(one.requests) == len(two.requests) == 3  # a probe and two prompts
        assert one.loaded == two.loaded
        engine.close()


def test_of_two_processes_the_first_sends_the_weights():
    """The second only samples, with the version that the first has set."""
    with serving() as (server, address):
        settings = VLLM(addresses=(address,))
        leader = settings.open(TOKENS, crew=Crew("run", 0, 2, leads=True))
        other = settings.open(TOKENS, crew=Crew("run", 1, 2, leads=False))
        weights = Weights(network(), "0")
        first = leader.submit(weights, asked())
        second = other.submit(weights, asked())
        same(first.result(), second.result())
        assert len(server.loaded) == 1
        other.close()
        leader.close()


def test_weights_change_while_no_process_samples():
    """Another process may still wait for responses when the first one has its own: both meet before and after."""
    meetings = []
    with serving() as (server, address):
        crew = Crew("meet", 0, 2, leads=True, wait=lambda: meetings.append(len(server.loaded)))
        with VLLM(addresses=(address,)).open(TOKENS, crew=crew) as engine:
            for version in ("0", "0", "1"):
                engine.sample(Weights(network(), version), asked())
    assert meetings == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("failure", "match"),
    [
        ("other weights", "someone else's"),
        ("old vLLM", "0.32"),
        ("aborts", "abort"),
        ("takes no weights", "VLLM_SERVER_DEV_MODE"),
        ("cannot reload", "no such tensor"),
        ("busy cache", "prefix cache"),
        ("hangs", "engine.timeout 0.5"),
        ("never ready", "engine.start_timeout 0.5"),
    ],
)
def test_failures_of_a_server_are_errors(failure, match):
    with serving(failure=failure) as (_, address):
        engine = VLLM(addresses=(address,), timeout=0.5, start_timeout=0.5).open(TOKENS)
        with pytest.raises(EngineError, match=match):
            engine.sample(Weights(network(), "0"), asked())
        engine.close()


def test_a_server_that_closes_idle_connections_loses_no_request():
    """vLLM closes them after 5 s; a request that was on its way would have ended the run."""
    with serving(failure="hangs up") as (server, address), VLLM(addresses=(address,)).open(TOKENS) as engine:
        for version in ("0", "0", "1"):
            engine.sample(Weights(network(), version), asked())
    assert len(server.requests) == 3 * len(PROMPTS) + 2  # two loads, each with its probe


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_were_not_taken_are_noticed(tied):
    """The server says that it has loaded them, and under which version: its log-probs say otherwise."""
    with serving(failure="keeps its weights") as (_, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        config = replace(CONFIG, tied_embeddings=tied)
        engine.sample(Weights(network(0, config), "0"), asked())
        with pytest.raises(EngineError, match=r"does not sample with the weights .* nats"):
            engine.sample(Weights(network(1, config), "1"), asked())
        engine.close()


def test_the_probe_computes_in_the_precision_of_the_weights():
    """In mixed precision the trainer's own log-probs would differ from those of an engine in float32."""
    policy, ids, sampled = network(), [5, 9, 2, 11], SampledIds.of(TOKENS)
    exact = response_logprobs(policy, PROMPTS[0], ids, sampled)
    logits = policy(torch.tensor([[*PROMPTS[0], *ids]]))[0, len(PROMPTS[0]) - 1 : -1]
    by_hand = logits.log_softmax(-1)[range(4), ids]
    assert torch.allclose(exact, by_hand, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(response_logprobs(policy, PROMPTS[0], ids, sampled), exact)


@pytest.mark.parametrize(("dtype", "weights"), [("float32", torch.bfloat16), ("bfloat16", torch.float32)])
def test_rounding_in_16_bits_on_either_side_is_no_fault(dtype, weights):
    """0.1 nats: too much between float32 and float32, not where one side rounds to 16 bits."""

    def off(*_):
        return [5], [-math.log(12) - 0.1], False

    with serving(off) as (_, address):
        with VLLM(addresses=(address,), dtype=dtype).open(TOKENS) as engine:
            engine.sample(Weights(uniform().to(weights), "0"), asked())
        with VLLM(addresses=(address,)).open(TOKENS) as engine, pytest.raises(EngineError, match=r"0\.1 nats"):
            engine.sample(Weights(uniform(), "0"), asked())


def test_a_tied_output_matrix_is_sent_as_one_of_its_own():
    """vLLM 0.32 answers that it has reloaded a tied one, and samples with the old."""
    with serving() as (server, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        engine.sample(Weights(network(), "0"), asked())
        assert '"tie_word_embeddings": false' in (Path(server.model) / "config.json").read_text()
        engine.close()


def test_nobody_answers():
    engine = VLLM(addresses=("unix:/nowhere/engine.sock",), start_timeout=0.3).open(TOKENS)
    with pytest.raises(EngineError, match="/nowhere/engine.sock"):
        engine.sample(Weights(network(), "0"), asked())
    engine.close()


@pytest.mark.parametrize(
    ("prompts", "match"), [([[2], []], "prompt 1 has 0"), ([[2] * 24], "at most 23"), ([[2, 12]], "outside")]
)
def test_prompts_that_would_end_the_server_are_refused(prompts, match):
    with serving() as (server, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        with pytest.raises(ValueError, match=match):
            engine.sample(Weights(network(), "0"), asked(prompts=prompts))
        engine.close()
        assert not server.requests


def test_an_architecture_that_vllm_lacks_is_refused():
    with serving() as (_, address):
        engine = VLLM(addresses=(address,)).open(TOKENS)
        with pytest.raises(ValueError, match="architecture"):
            engine.sample(Weights(network(config=replace(CONFIG, norm_placement="post")), "0"), asked())
        engine.close()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"gpu_memory": 1.5}, "gpu_memory"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"timeout": 0.0}, "timeout"),
        ({"addresses": ["node1:8000"]}, "node1:8000"),
    ],
)
def test_invalid_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        VLLM(**settings)


# Servers that the run starts.


def gone(pid: int) -> bool:
    """Whether a process has ended, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def left_behind(token: str) -> list[str]:
    return [str(path) for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob(f"align-{token}*")]


def test_a_server_of_its_own_is_started_and_ended(tmp_path):
    """With it ends a child that it left, and its weights and socket are gone."""
    marker, log = tmp_path / "child", tmp_path / "engine.log"
    settings = process(environment={"FAKE_CHILD": str(marker)}, arguments={"block-size": 32})
    engine = settings.open(TOKENS, crew=Crew("own-server"), log=log)
    sampled = engine.sample(Weights(uniform(), "0"), asked())
    assert sampled.ids == [[5, 1]] * 4
    assert sampled.samples.logprobs.tolist() == [pytest.approx([-math.log(12)] * 2)] * 4
    assert left_behind("own-server")
    engine.sample(Weights(uniform(), "1"), asked())
    engine.close()
    engine.close()
    assert gone(int(marker.read_text()))
    assert not left_behind("own-server")
    assert log.exists()


def test_a_server_that_dies_is_named_with_its_last_words(tmp_path):
    engine = process("dies").open(TOKENS, log=tmp_path / "engine.log")
    with pytest.raises(EngineError, match=r"exit code 7.*the card fell off.*engine.log"):
        engine.sample(Weights(network(), "0"), asked())
    engine.close()


def test_a_server_that_does_not_start_says_why(tmp_path):
    engine = process("does not start").open(TOKENS, log=tmp_path / "engine.log")
    with pytest.raises(EngineError, match=r"no memory for the cache.*engine.log"):
        engine.sample(Weights(network(), "0"), asked())
    engine.close()


def test_there_is_no_such_python():
    engine = VLLM(python="/nowhere/python").open(TOKENS)
    with pytest.raises(FileNotFoundError):
        engine.sample(Weights(network(), "0"), asked())
    engine.close()


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from test_vllm import TOKENS, asked, process, uniform
from align.engines import Crew, Weights
from pathlib import Path
engine = process(environment={{"FAKE_CHILD": sys.argv[1]}}).open(
    TOKENS, crew=Crew("killed"), log=Path(sys.argv[1]).with_name("log"))
engine.sample(Weights(uniform(), "0"), asked())
print("sampled", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found through Linux's subreapers")
@pytest.mark.parametrize("victim", ["trainer", "guard", "server"])
def test_no_process_and_no_weights_stay_when_one_is_killed(tmp_path, victim):
    """SIGKILL of the trainer, of the process that watches the server, or of the server while its child lives on."""
    marker = tmp_path / "child"
    script = KILLED.format(path=[str(Path(__file__).parent)])
    trainer = subprocess.Popen([sys.executable, "-c", script, str(marker)], stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline().strip() == "sampled"
        (guard,) = _children(trainer.pid)
        (server,) = _children(guard)
        child = int(marker.read_text())
        os.kill({"trainer": trainer.pid, "guard": guard, "server": server}[victim], signal.SIGKILL)
        assert gone(server)
        if victim == "guard":  # nobody is left then to look for the server's own children
            os.kill(child, signal.SIGKILL)
        else:
            assert gone(guard)
            assert gone(child)
            assert not left_behind("killed")
    finally:
        trainer.kill()
        trainer.communicate()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
