"""A judge behind an OpenAI-compatible endpoint: orders, ties, failures, against a local fake server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from naming import naming

from align.compare.endpoint import Endpoint, compare_pairs
from align.compare.respond import Response

Reply = Callable[[str, str], str]


class Fake:
    """A chat-completions server whose verdict is a function of the two responses it is shown."""

    def __init__(self) -> None:
        self.reply: Reply = lambda a, b: "tie"
        self.asked: list[tuple[str, str]] = []
        self.fail_after: int | None = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                text = body["messages"][0]["content"]
                a, b = text.split("Response A:\n")[1].split("\n\nResponse B:\n")
                b = b.split("\n\nSay which")[0]
                if fake.fail_after is not None and len(fake.asked) >= fake.fail_after:
                    self.send_response(400)
                    self.end_headers()
                    return
                fake.asked.append((a, b))
                message = {"role": "assistant", "content": fake.reply(a, b)}
                content = json.dumps(
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": body["model"],
                        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = Endpoint.parse(f"http://127.0.0.1:{self.server.server_port}/v1#fake")


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.server.shutdown()


def judge(fake: Fake, folder: Path, a: list[str], b: list[str]) -> np.ndarray:
    def responses(texts: list[str]) -> list[Response]:
        return [Response(text, 1, True, 0.0) for text in texts]

    prompts = [f"prompt {number}" for number in range(len(a))]
    return compare_pairs(fake.endpoint, prompts, responses(a), responses(b), folder=folder, advance=lambda count: None)


def test_the_longer_response_wins_in_both_orders(fake: Fake, tmp_path: Path) -> None:
    fake.reply = lambda a, b: "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"
    assert judge(fake, tmp_path, ["long one", "no", "same"], ["short", "longer", "same"]).tolist() == [1.0, 0.0, 0.5]
    assert fake.asked[:2] == [("long one", "short"), ("short", "long one")], "each pair in both orders"


def test_a_judge_that_always_likes_the_first_says_nothing(fake: Fake, tmp_path: Path) -> None:
    fake.reply = lambda a, b: "Response A."
    assert judge(fake, tmp_path, ["x", "y"], ["z", "w"]).tolist() == [0.5, 0.5]


def test_a_failure_keeps_what_was_said(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.compare.endpoint._GROUP", 2)
    fake.reply, fake.fail_after = lambda a, b: "B" if b == "good" else "A", 5
    with pytest.raises(ValueError, match=naming("fake", fake.endpoint.url)):
        judge(fake, tmp_path, ["good"] * 4, ["bad"] * 4)
    fake.fail_after = None
    assert judge(fake, tmp_path, ["good"] * 4, ["bad"] * 4).tolist() == [1.0] * 4
    assert len(fake.asked) == 5 + 4, "the first two pairs were not asked about again"


def test_talk_instead_of_a_verdict_is_an_error(fake: Fake, tmp_path: Path) -> None:
    fake.reply = lambda a, b: "It is a matter of taste"
    with pytest.raises(ValueError, match=naming("fake", "It is a matter of taste", "A", "B", "tie")):
        judge(fake, tmp_path, ["x"], ["y"])
    assert len(fake.asked) == 3


def test_an_endpoint_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.compare.endpoint._TRIES", 1)
    with pytest.raises(ValueError, match=naming("m", "http://127.0.0.1:9/v1")):
        compare_pairs(
            Endpoint("http://127.0.0.1:9/v1", "m"),
            ["p"],
            [Response("a", 1, True, 0.0)],
            [Response("b", 1, True, 0.0)],
            folder=tmp_path,
            advance=lambda count: None,
        )


def test_a_source_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=naming("http://127.0.0.1:9/v1", "http://HOST/v1#MODEL")):
        Endpoint.parse("http://127.0.0.1:9/v1")
