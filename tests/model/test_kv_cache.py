import pytest
import torch
from network_options import STYLES

from align.model.config import GPTConfig
from align.model.kv_cache import KVCache


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_cached_logits_equal_uncached_for_ragged_prompts(network_of, tokens, style, reference):
    """Three right-padded prompts, then four tokens each one by one, against full forward passes."""
    network, ids = network_of(**STYLES[style]), tokens(3, 14)
    network.model.reference_attention = reference
    lengths = torch.tensor([10, 1, 6])
    prompts = torch.where(torch.arange(10) < lengths[:, None], ids[:, :10], 0)
    cache = KVCache(network.config, 3, 20, dtype=torch.float64)
    prefill = network(prompts, positions=torch.arange(10), cache=cache)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(prefill[row, :length], network(ids[row : row + 1, :length])[0])
    for step in range(4):
        places = (lengths + step)[:, None]
        found = network(ids.gather(1, places), positions=places, cache=cache)[:, 0]
        for row, place in enumerate(places[:, 0].tolist()):
            torch.testing.assert_close(found[row], network(ids[row : row + 1, : place + 1])[0, -1])


def test_prompts_may_be_read_in_pieces(network_of, tokens):
    network, ids = network_of(), tokens(2, 9)
    cache = KVCache(network.config, 2, 9, dtype=torch.float64)
    pieces = [network(part, positions=place, cache=cache)
              for part, place in zip(ids.split(4, 1), torch.arange(9).split(4), strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.cat(pieces, 1), network(ids))


def test_kept_rows_go_on_as_before(network_of, tokens):
    network, ids = network_of(), tokens(4, 8)
    cache = KVCache(network.config, 4, 12, dtype=torch.float64)
    network(ids[:, :7], positions=torch.arange(7), cache=cache)
    rows = torch.tensor([1, 3])
    cache.keep(rows, 7)
    found = network(ids[rows, 7:], positions=torch.tensor([7]), cache=cache)
    torch.testing.assert_close(found[:, 0], network(ids[rows])[:, -1])


def test_mistakes_are_named(network_of, tokens):
    with pytest.raises(ValueError, match=r"length.*\b257\b.*\b256\b"):
        KVCache(GPTConfig(), 1, 257)
    network = network_of()
    cache = KVCache(network.config, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="positions"):
        network(tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="documents"):
        network(tokens(1, 3), positions=torch.arange(3), documents=torch.zeros(1, 3).long(), cache=cache)
