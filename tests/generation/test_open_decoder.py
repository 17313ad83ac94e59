"""Rows that join and leave: the plain decoder's numbers, and the same bits in any company."""

import random

import pytest
import torch

from align.generation.decoder import Decoder
from align.generation.open_decoder import OpenDecoder

TOKENS = 14


def texts(count, seed=0):
    """Prompts of 1 to 34 tokens and what follows each."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 34) for _ in range(count)]
    return [
        ([draw.randrange(61) for _ in range(length)], [draw.randrange(61) for _ in range(TOKENS)]) for length in lengths
    ]


def through(decoder, prompt, following):
    """Logits after a prompt and after each token that follows it, of a row alone in its decoder."""
    logits = [decoder.join([prompt])]
    logits += [decoder.step(torch.tensor([token])) for token in following]
    decoder.leave(0)
    return torch.cat(logits)


def in_company(decoder, rows, seed=0):
    """The same of many rows that join when they like and leave early or at their end, in one decoder."""
    draw = random.Random(seed)
    waiting, here, found = list(range(len(rows))), [], {row: [] for row in range(len(rows))}
    while waiting or here:
        come = waiting[: draw.randint(0, min(5, decoder.max_rows - len(here)))]
        if come:
            waiting = waiting[len(come) :]
            for row, logits in zip(come, decoder.join([rows[row][0] for row in come]).split(1), strict=True):
                found[row].append(logits)
            here += come
        if not here:
            continue
        logits = decoder.step(torch.tensor([rows[row][1][len(found[row]) - 1] for row in here]))
        for place, row in enumerate(here):
            found[row].append(logits[place : place + 1])
        for place in reversed(range(len(here))):
            if len(found[here[place]]) > TOKENS or draw.random() < 0.03:
                decoder.leave(place)
                here[place] = here[-1]
                here.pop()
    return [torch.cat(found[row]) for row in range(len(rows))]


@pytest.mark.parametrize(
    "settings", [{}, {"kv_heads": 1, "qk_norm": True}, {"positions": "learned", "norm": "layernorm"}]
)
@torch.no_grad()
def test_rows_equal_the_plain_decoder(network_of, settings):
    network, rows = network_of(**settings), texts(25)
    for (prompt, following), found in zip(
        rows, in_company(OpenDecoder(network, max_rows=7, slots=48), rows), strict=True
    ):
        plain = Decoder(network, [prompt], slots=48)
        expected = [plain.read_prompts()] + [plain.step(torch.tensor([token])) for token in following]
        torch.testing.assert_close(found, torch.cat(expected)[: len(found)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_company_changes_no_bit(network_of, dtype):
    network, rows = network_of().to(dtype), texts(40, seed=1)
    together = in_company(OpenDecoder(network, max_rows=18, slots=48), rows)
    single = OpenDecoder(network, max_rows=1, slots=48)
    for (prompt, following), found in zip(rows, together, strict=True):
        assert torch.equal(through(single, prompt, following)[: len(found)], found)


@torch.no_grad()
def test_a_row_may_fill_its_slots(network_of):
    """48 slots: a prompt of 47 tokens and one more."""
    decoder = OpenDecoder(network_of(), max_rows=2, slots=48)
    decoder.join([[1] * 47])
    assert decoder.step(torch.tensor([2])).isfinite().all()


@torch.no_grad()
def test_mistakes_are_named(network_of):
    decoder = OpenDecoder(network_of(), max_rows=1, slots=8)
    decoder.join([[1]])
    with pytest.raises(ValueError, match="1 prompts for 0 rows that are left"):
        decoder.join([[1]])
    with pytest.raises(ValueError, match="length is 49; it must be between 1 and the network's context"):
        OpenDecoder(network_of(), max_rows=1, slots=49)
    network = network_of()
    network.model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks or sharded weights cannot be served"):
        OpenDecoder(network, max_rows=1, slots=8)
