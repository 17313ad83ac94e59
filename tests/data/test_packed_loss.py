"""Packing changes no loss: documents in shared rows are read as if each stood alone."""

import numpy as np
import pytest
import torch

from align.data.rows import single_rows
from align.data.text_data import ChatData, TextData
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.objectives import next_token_loss

SIZES = (1, 14, 3, 7, 2, 11, 5, 5, 30, 4)


@pytest.fixture(scope="module")
def network():
    """A GPT in float64, of any weights."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=263, layers=2, heads=2, width=16, context=64)).double()


def loss_of(network, dataset):
    """Sum over all targets of a split, and their number."""
    batch = dataset[np.arange(len(dataset))]
    inputs = {"positions": batch.positions, "documents": batch.documents}
    given = {name: part[:, :-1] for name, part in inputs.items() if part is not None}
    found = next_token_loss(network.hidden(batch.ids[:, :-1], **given), network.output_weight, batch.ids, batch.mask)
    return found.loss, found.tokens


@pytest.mark.parametrize("kind", [TextData, ChatData])
def test_loss_over_packed_rows(build, network, kind):
    """Ten documents in fewer rows of 64: the sum of the losses is that of a document a row."""
    records = [
        {"text": "ab" * n} if kind is TextData
        else {"messages": [{"role": "user", "content": "q" * n}, {"role": "assistant", "content": "ab" * n}]}
        for n in SIZES
    ]  # fmt: skip
    data = build(kind, *records, packing="best_fit", context=63)
    packed = data._datasets["train"]
    alone = data._row_dataset(packed.corpus, single_rows(data._bounds("train")))
    assert len(packed) < len(alone)
    (loss, tokens), (expected, count) = (loss_of(network, one) for one in (packed, alone))
    assert tokens == count
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
