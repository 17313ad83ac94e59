"""The engine: answers do not depend on the company, rows come free, text is whole."""

import random
import threading
import time

import pytest
import torch
from serving_parts import until

from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.serve.engine import Engine
from align.serve.requests import EngineFailed, EngineFull, Request

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.3},
]


def requests(count):
    draw = random.Random(0)
    return [
        {
            "prompt": [draw.randrange(250) for _ in range(draw.randint(1, 40))],
            "seed": draw.randrange(1 << 40),
            "max_new_tokens": draw.randint(1, 60),
            **draw.choice(SETTINGS),
        }
        for _ in range(count)
    ]


def test_an_answer_is_the_same_alone_among_others_and_from_generate(network, tokenizer, engine, ask):
    """30 requests of four settings share 8 rows; the same seeds alone, and through align.generate."""
    asked = requests(30)
    together = [ask(engine, **request) for request in asked]
    for heard in together:
        assert heard.last.reason in ("stop", "length")
    with Engine(network, tokenizer, max_rows=1) as single:
        alone = [ask(single, **request) for request in asked]
        for request, one, many in zip(asked, alone, together, strict=True):
            assert (one.last._replace(text=""), one.text) == (many.last._replace(text=""), many.text)
            sampling = SamplingConfig(**{key: value for key, value in request.items() if key not in ("prompt", "seed")})
            samples = generate(
                network, [request["prompt"]], sampling, seeds=[request["seed"]], stop_ids=tokenizer.stop_ids
            )
            assert many.text == tokenizer.decode(samples.ids[0].tolist())
            assert many.last.tokens == samples.ids.shape[1]
            assert many.last.reason == ("stop" if samples.finished[0] else "length")


def test_a_cancelled_request_is_gone_by_the_next_step(network, tokenizer, ask):
    with Engine(network, tokenizer, max_rows=2) as engine:
        steps, step = [], engine._decoder.step
        going = threading.Event()

        def slow(ids):
            going.set()
            time.sleep(0.02)
            steps.append(len(ids))
            return step(ids)

        engine._decoder.step = slow
        first, second, third = (ask(engine, [1, 2], seed=seed, max_new_tokens=100) for seed in (1, 2, 3))
        until(lambda: 2 in steps)
        engine.cancel(first.ticket)
        after, tokens = len(steps), len(first.pieces)
        until(lambda: third.pieces)
        # One step may have begun before the cancellation; in the next the third has the row.
        assert len(steps) <= after + 2
        assert len(first.pieces) <= tokens + 1
        assert not first.over.is_set()
        engine.cancel(second.ticket)
        engine.cancel(third.ticket)
        until(lambda: engine.running == 0)
        engine.cancel(third.ticket)


def test_a_waiting_request_can_be_cancelled(network, tokenizer, ask):
    with Engine(network, tokenizer, max_rows=1) as engine:
        first, second, third = (ask(engine, [1], seed=seed, max_new_tokens=60) for seed in range(3))
        engine.cancel(second.ticket)
        assert first.last.reason
        assert third.last.reason
        assert second.pieces == []
        until(lambda: engine.running == engine.waiting == 0)


def test_too_many_are_refused(network, tokenizer, ask):
    with Engine(network, tokenizer, max_rows=1, max_waiting=2) as engine:
        heard = [ask(engine, [1], max_new_tokens=120) for _ in range(3)]
        with pytest.raises(EngineFull, match="wait"):
            ask(engine, [1])
        for one in heard:
            engine.cancel(one.ticket)


def test_characters_come_whole_and_stop_sequences_span_tokens(parrot, tokenizer, ask):
    """One token a byte: the prompt of one token is followed by the text from its byte 0 on."""
    with Engine(parrot("añ日🙂 und so weiter."), tokenizer, max_rows=2) as engine:
        heard = ask(engine, [1], temperature=0, max_new_tokens=10)
        assert heard.last.reason == "length"
        assert [piece.text for piece in heard.pieces] == ["a", "ñ", "日", "🙂"]
        # 9 tokens end inside the last character.
        heard = ask(engine, [1], temperature=0, max_new_tokens=9)
        assert (heard.last.tokens, heard.text) == (9, "añ日\N{REPLACEMENT CHARACTER}")
        heard = ask(engine, [1], temperature=0, max_new_tokens=60, stop=["so wo", "so we", "never"])
        assert (heard.last.reason, heard.text) == ("stop", "añ日🙂 und ")
        assert heard.last.tokens == len("añ日🙂 und so we".encode())
        assert all(heard.pieces[i].text for i in range(len(heard.pieces) - 1))


def test_a_stop_token_ends_an_answer_and_is_counted(parrot, tokenizer, ask):
    """Text that might have become a stop sequence is handed out when a stop token ends the answer."""
    with Engine(parrot("hello", stop_after=4), tokenizer, max_rows=1) as engine:
        heard = ask(engine, [1], temperature=0, max_new_tokens=50, stop=["llo"])
        assert (heard.last.reason, heard.last.tokens, heard.text) == ("stop", 5, "hell")


def test_answers_end_where_the_length_does(engine, ask):
    """128 tokens: a prompt of 120 leaves 8."""
    assert ask(engine, [3] * 120, max_new_tokens=50).last.tokens == 8


def test_weights_that_are_not_finite_are_told(network, tokenizer, ask):
    import copy

    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with Engine(broken, tokenizer, max_rows=1) as engine:
        assert "logits are not finite" in ask(engine, [1]).last.error


def test_an_error_fails_everyone_and_stays(network, tokenizer, ask):
    with Engine(network, tokenizer, max_rows=1) as engine:
        asked = threading.Event()
        engine._decoder.step = lambda ids: asked.wait() / 0
        heard = [ask(engine, [1]) for _ in range(2)]
        asked.set()
        for one in heard:
            assert one.last.reason == "failed"
            assert "ZeroDivisionError" in one.last.error
        until(lambda: engine.failure is not None)
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            ask(engine, [1])


def test_a_listener_that_raises_loses_its_row_only(engine, ask):
    def complain(piece):
        raise RuntimeError("gone")

    engine.submit(Request([1], SamplingConfig(max_new_tokens=100)), complain)
    assert ask(engine, [1], max_new_tokens=5).last.reason == "length"
    until(lambda: engine.running == 0)


def test_closing_tells_who_waits(network, tokenizer, ask):
    engine = Engine(network, tokenizer, max_rows=1)
    heard = [ask(engine, [1], max_new_tokens=120) for _ in range(3)]
    engine.close()
    assert [one.last.reason for one in heard][1:] == ["failed"] * 2
    assert not engine._thread.is_alive()
    with pytest.raises(EngineFailed, match="closed"):
        ask(engine, [1])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "has 0 tokens"), ([1] * 128, "has 128 tokens; it must have at least 1 and at most 127"), ([263], "outside")],
)
def test_prompts_that_cannot_be_answered(engine, ask, prompt, message):
    with pytest.raises(ValueError, match=message):
        ask(engine, prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_rows": 0}, "max_concurrency is 0; it must be between 1"),
        ({"max_rows": 1, "max_length": 129}, "max_length is 129; it must be between 2 and 128"),
        ({"max_rows": 1, "max_waiting": -1}, "max_waiting is -1"),
    ],
)
def test_limits_that_cannot_be(network, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(network, tokenizer, **settings)
