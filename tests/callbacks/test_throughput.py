import time
from types import SimpleNamespace

import pytest
import torch
from naming import naming

from align.batches import TokenBatch
from align.callbacks.throughput import Throughput
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.plan.hardware import in_use
from align.plan.precision import PRECISIONS


def test_tokens_of_a_reading_over_its_seconds_without_validation():
    """Two batches of 3 rows of 8 predictions in 2 x 0.05 s of training, 0.5 s of validation between them.

    48 tokens in 0.1 s is 480 a second; with the validation it would be 80.
    """
    network = GPT(GPTConfig(vocab_size=5, layers=1, heads=1, width=8, context=8))
    logged: dict[str, float] = {}
    module = SimpleNamespace(device=torch.device("cpu"), network=network, log_dict=lambda v, prog_bar: logged.update(v))
    trainer = SimpleNamespace(world_size=1, distributed_sampler_kwargs=None)
    batch = TokenBatch(torch.zeros(3, 9, dtype=torch.long), None, None, None, None)
    callback = Throughput(every=2)
    callback._peak = 1e9
    for number in range(2):
        callback.on_train_batch_start(trainer, module, batch, number)
        time.sleep(0.05)
        callback.on_train_batch_end(trainer, module, None, batch, number)
        if number == 0:
            callback.on_validation_start(trainer, module)
            time.sleep(0.5)
    rate = logged["throughput/tokens_per_s"]
    assert 200 < rate <= 480
    assert logged["throughput/mfu"] == pytest.approx(rate * network.flops_per_token(8) / 1e9)


def test_a_cpu_has_a_peak_and_an_unknown_device_none():
    precision = PRECISIONS["32-true"]
    assert in_use(torch.device("cpu"), precision).peak(precision) > 1e8
    assert in_use(torch.device("meta"), precision).peak(precision) is None


def test_a_reading_needs_a_batch():
    with pytest.raises(ValueError, match=naming("throughput.every", 0)):
        Throughput(every=0)
