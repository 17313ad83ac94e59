"""The server, asked by OpenAI's own client and by rude ones."""

import asyncio
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import openai
import pytest
from serving_parts import ask_for, until

from align.generation.generate import generate
from align.generation.open_decoder import OpenDecoder
from align.generation.sampling_config import SamplingConfig
from align.serve.protocol import Limits


def connection(served):
    return http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)


def post(served, body, *, headers=None):
    """A raw request; returns status, headers and body."""
    line = connection(served)
    line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"} | (headers or {}))
    response = line.getresponse()
    return response.status, dict(response.getheaders()), json.loads(response.read())


def expected(network, tokenizer, content, *, seed, **settings):
    """What generate answers: text, prompt tokens, sampled tokens."""
    prompt = tokenizer.render_chat([{"role": "user", "content": content}], add_generation_prompt=True).ids
    samples = generate(network, [prompt], SamplingConfig(**settings), seeds=[seed], stop_ids=tokenizer.stop_ids)
    return tokenizer.decode(samples.ids[0].tolist()), len(prompt), samples.ids.shape[1]


@pytest.mark.parametrize("seed", [3, 4])
def test_whole_and_streamed_answers_are_those_of_generate(served, network, tokenizer, seed):
    client = served().client()
    text, prompt, tokens = expected(network, tokenizer, "hällo", seed=seed, max_new_tokens=40, top_p=0.9)
    asked = ask_for("hällo", seed=seed, max_tokens=40, top_p=0.9)
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == text
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, tokens)
    assert whole.usage.total_tokens == prompt + tokens
    assert whole.choices[0].finish_reason == ("length" if tokens == 40 else "stop")

    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1

    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_many_at_once_answer_as_alone(served, network, tokenizer):
    """12 requests of the asynchronous client, streamed and whole, in 4 rows."""
    started = served()

    async def one(client, seed):
        asked = ask_for(f"number {seed}", seed=seed, max_completion_tokens=5 + 3 * seed)
        if seed % 2:
            return (await client.chat.completions.create(**asked)).choices[0].message.content
        stream = await client.chat.completions.create(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everyone():
        async with openai.AsyncOpenAI(base_url=f"{started.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(12)))

    for seed, text in enumerate(asyncio.run(everyone())):
        assert text == expected(network, tokenizer, f"number {seed}", seed=seed, max_new_tokens=5 + 3 * seed)[0]


def test_without_a_seed_answers_differ(served):
    client = served().client()
    answers = {client.chat.completions.create(**ask_for()).choices[0].message.content for _ in range(3)}
    assert len(answers) == 3


def test_stop_sequences_and_parts_of_text(served, network, tokenizer):
    client = served().client()
    text, _, _ = expected(network, tokenizer, "hello", seed=1, max_new_tokens=30, temperature=0)
    stop = text[10:13]
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    settings = {"temperature": 0, "max_tokens": 30, "stop": [stop]}
    answer = client.chat.completions.create(**ask_for(parts, **settings)).choices[0]
    assert (answer.message.content, answer.finish_reason) == (text[: text.index(stop)], "stop")


def test_models_and_health(served):
    started = served()
    client = started.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "align"
    with pytest.raises(openai.NotFoundError, match="no model 'other'; this server has 'tiny'"):
        client.models.retrieve("other")
    line = connection(started)
    line.request("GET", "/health")
    assert json.loads(line.getresponse().read()) == {"status": "ok", "running": 0, "waiting": 0}


@pytest.fixture
def slow_steps(monkeypatch):
    """100 tokens take 5 seconds."""
    step = OpenDecoder.step
    monkeypatch.setattr(OpenDecoder, "step", lambda decoder, ids: (time.sleep(0.05), step(decoder, ids))[1])


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_hangs_up_frees_its_row(served, slow_steps, streamed):
    started = served(max_rows=1)
    line = socket.create_connection(urlsplit(started.url).netloc.split(":"))
    body = json.dumps(ask_for(max_tokens=100, stream=streamed)).encode()
    line.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    until(lambda: started.engine.running == 1)
    if streamed:
        assert b"200 OK" in line.recv(15)
    line.close()
    begin = time.monotonic()
    until(lambda: started.engine.running == 0)
    assert time.monotonic() - begin < 2
    assert started.client().chat.completions.create(**ask_for(max_tokens=2)).choices[0].message.content


def test_too_many_get_429_and_when_to_come_back(served, slow_steps):
    started = served(max_rows=1, max_waiting=1)
    first = started.client().chat.completions.create(**ask_for(max_tokens=100, stream=True))
    with ThreadPoolExecutor() as threads:
        asked = ask_for(max_tokens=2)
        second = threads.submit(started.client().chat.completions.create, **asked)
        until(lambda: started.engine.waiting == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are being answered and 1 wait") as refused:
            started.client().chat.completions.create(**asked)
        assert refused.value.response.headers["retry-after"] == "1"
        first.close()
        # OpenAI's client comes back by itself.
        assert started.client(max_retries=5).chat.completions.create(**asked)
        assert second.result()


def test_an_engine_that_fails_ends_the_server(served, slow_steps, monkeypatch):
    """What had begun gets an event, what had not a status of 500; the server does not go on without an engine."""
    started = served(max_rows=1)
    stream = started.client().chat.completions.create(**ask_for(max_tokens=100, stream=True))
    next(stream)
    hold = threading.Event()
    monkeypatch.setattr(OpenDecoder, "step", lambda decoder, ids: hold.wait(10) / 0)
    with ThreadPoolExecutor() as threads:
        waiting = [
            threads.submit(started.client().chat.completions.create, **ask_for(stream=streamed))
            for streamed in (True, False)
        ]
        until(lambda: started.engine.waiting == 2)
        hold.set()
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            list(stream)
        for one in waiting:
            with pytest.raises(openai.InternalServerError, match="ZeroDivisionError") as refused:
                one.result()
            assert refused.value.status_code == 500
    started.thread.join(10)
    assert not started.thread.is_alive()


def test_keys(served):
    started = served(api_key="secret")
    with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"):
        started.client(api_key="wrong").chat.completions.create(**ask_for())
    with pytest.raises(openai.AuthenticationError):
        started.client(api_key="wrong").models.list()
    assert started.client(api_key="secret").chat.completions.create(**ask_for(max_tokens=1))
    line = connection(started)
    line.request("GET", "/health")
    assert line.getresponse().status == 200


@pytest.mark.parametrize(
    ("changed", "status", "message", "param"),
    [
        ({"model": "other"}, 404, "no model 'other'; this server has 'tiny'", "model"),
        ({"model": None}, 400, "model is missing; this server has 'tiny'", "model"),
        ({"messages": None}, 400, "messages is missing; it must be a list of messages", "messages"),
        ({"messages": []}, 400, "the chat has no messages", "messages"),
        ({"messages": "hi"}, 400, "messages is 'hi'; it must be a list of messages", "messages"),
        ({"messages": ["hi"]}, 400, "message 0 is 'hi'; it must have a role and a content", "messages"),
        ({"messages": [{"role": "user"}]}, 400, "message 0 has no 'content'", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role 'robot' is unknown; use system", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content is [{'type'", "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "lone surrogate U+D800", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, 400, "the prompt has 20", "messages"),
        ({"max_tokens": 101}, 400, "max_tokens is 101; this server gives between 1 and 100", "max_tokens"),
        ({"max_completion_tokens": 0}, 400, "max_completion_tokens is 0", "max_completion_tokens"),
        ({"max_tokens": True}, 400, "max_tokens is True; it must be a whole number", "max_tokens"),
        ({"temperature": -1}, 400, "temperature is -1; it must be 0 or above", "temperature"),
        ({"temperature": "hot"}, 400, "temperature is 'hot'; it must be a number", "temperature"),
        ({"temperature": 1e400}, 400, "temperature is inf; it must be 0 or above", "temperature"),
        ({"top_p": 0}, 400, "top_p is 0; it must be in (0, 1]", "top_p"),
        ({"top_k": 1.5}, 400, "top_k is 1.5; it must be a whole number", "top_k"),
        ({"seed": 1 << 70}, 400, "it must fit in 64 bits", "seed"),
        ({"n": 2}, 400, "n is 2; this server only takes 1", "n"),
        ({"tools": [{}]}, 400, "tools is [{}]; this server only takes []", "tools"),
        ({"stop": [""]}, 400, "stop is ['']; it must be a text or a list of texts, none empty", "stop"),
        ({"stop": ["x"] * 17}, 400, "stop takes at most 16 texts", "stop"),
        ({"stream": "yes"}, 400, "stream is 'yes'; it must be true or false", "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "goes with stream: true only", "stream_options"),
        ({"temprature": 1}, 400, "unknown field 'temprature'; did you mean 'temperature'?", "temprature"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_would_be_right(shared, changed, status, message, param):
    code, _, body = post(shared, json.dumps(ask_for() | changed))
    assert code == status
    assert message in body["error"]["message"]
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "the body is not JSON"),
        (b"\xff", {}, 400, "the body is not JSON"),
        (b"[" * 15_000, {}, 400, "the body is not JSON"),
        (b"[]", {}, 400, "the body is a JSON list; it must be an object"),
        (b"x" * 20_001, {}, 413, "the body is larger than 20000 bytes"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "the content type is 'text/plain'; it must be application/json"),
    ],
)
def test_bad_bodies(shared, body, headers, status, message):
    code, _, answer = post(shared, body, headers=headers)
    assert (code, message in answer["error"]["message"]) == (status, True)


def test_a_body_of_unknown_length_is_counted(shared):
    parts = (b"x" * 5_000 for _ in range(10))
    assert post(shared, parts)[0] == 413


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/chat/completions", 405), ("GET", "/v2", 404)])
def test_wrong_places(shared, method, path, status):
    line = connection(shared)
    line.request(method, path)
    response = line.getresponse()
    assert response.status == status
    assert json.loads(response.read())["error"]["message"].startswith(f"{method} {path}: ")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_broken_network_is_told(served, network, streamed):
    import copy

    import torch

    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    client = served(broken).client()
    with pytest.raises(openai.InternalServerError, match="logits are not finite"):
        list(client.chat.completions.create(**ask_for(stream=streamed)))


def test_limits_of_the_service(served):
    client = served(limits=Limits(max_new_tokens=9, default_new_tokens=4)).client()
    assert client.chat.completions.create(**ask_for(seed=1)).usage.completion_tokens == 4
    assert client.chat.completions.create(**ask_for(seed=1, max_tokens=9)).usage.completion_tokens == 9


def test_neutral_values_and_what_has_no_bearing_are_taken(shared):
    """The same answer as without them; a developer's message is a system's."""
    extra = {"n": 1, "tools": [], "logprobs": False, "presence_penalty": 0.0, "stop": None, "user": "me", "store": True}
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    plain = post(shared, json.dumps(ask_for(seed=1) | {"messages": messages}))
    messages[0]["role"] = "developer"
    decorated = post(shared, json.dumps(ask_for(seed=1) | {"messages": messages} | extra))
    assert (plain[0], plain[2]["choices"]) == (200, decorated[2]["choices"])


def test_a_body_that_does_not_come(served, monkeypatch):
    monkeypatch.setattr("align.serve.app._BODY_SECONDS", 0.1)
    line = socket.create_connection(urlsplit(served().url).netloc.split(":"))
    line.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    assert line.recv(1000).startswith(b"HTTP/1.1 408 ")
    line.close()
