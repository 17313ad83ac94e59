"""Memory by part: bytes derived by hand, shards, phases, and what a graph keeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_jobs import GPT2, LLAMA3_8B, ROLLOUT, TINY, job

from align.adapters.lora import LoraConfig
from align.model.gpt import GPT
from align.plan.job import PlannedNetwork
from align.plan.memory import largest_batch, logits_bytes, memory_of, optimizer_bytes
from align.plan.parameters import count, weights_of
from align.plan.precision import PRECISIONS
from align.plan.strategy import Strategy, strategies
from align.training.optimization import OptimizerConfig, build_optimizer


def bytes_of(value) -> int:
    """Of a tensor, or of one that is made of others."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(bytes_of(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.nbytes


@pytest.mark.parametrize("bits", [32, 8])
def test_optimizer_bytes_are_exact(bits):
    parameters = list(GPT(TINY).parameters())
    optimizer = build_optimizer(parameters, OptimizerConfig(lr=0.1, state_bits=bits))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(bytes_of(value) for state in optimizer.state.values() for value in state.values())
    assert optimizer_bytes([(p.numel(), 4) for p in parameters], bits) == held


def test_weights_by_hand():
    """GPT-2 in bf16-mixed: 4 bytes of weights, 4 of gradients, 8 of means per parameter; in bf16-true half of each.

    Each of 2 embeddings, 25 norms with biases and 12 blocks of 6 matrices with biases has a step count of 4 bytes.
    """
    found = memory_of(job(GPT2, precision=PRECISIONS["bf16-mixed"], accelerator="cuda"))
    assert found.parameters == found.gradients == 4 * 124_439_808
    assert found.optimizer == 8 * 124_439_808 + 4 * (2 + 2 * 25 + 2 * 12 * 6)
    half = memory_of(job(GPT2, precision=PRECISIONS["bf16-true"], accelerator="cuda"))
    assert 2 * half.parameters == found.parameters
    # Two copies [V, D] of the output matrix's gradient, and 128 positions of logits and softmax.
    assert found.logits == 2 * 4 * 50257 * 768 + 2 * 4 * 128 * 50257
    assert found.process == found.kv_cache == found.gathered == 0


def test_muon_has_one_mean_of_the_matrices_of_blocks():
    """And no step count for them: 7 in each of 3 blocks."""
    adamw, muon = (memory_of(job(muon=one)).optimizer for one in (False, True))
    matrices = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert adamw - muon == 4 * matrices + 4 * 3 * 7


def test_qlora_by_hand():
    """Block matrices at 0.5 + 1/64 + 4/16384 bytes, embeddings and norms in bfloat16, adapters in float32."""
    lora = LoraConfig(rank=8)
    network = PlannedNetwork("policy", LLAMA3_8B, trained=True, lora=lora)
    found = memory_of(job(network=network, precision=PRECISIONS["qlora"], base_bytes=2, accelerator="cuda"))
    blocks = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 8_030_261_248 - blocks
    assert found.frozen == pytest.approx(blocks * (0.5 + 1 / 64 + 1 / 4096) + 2 * rest, rel=1e-6)
    adapter = 32 * 8 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert found.parameters == found.gradients == 4 * adapter


def test_fsdp_shards_and_gathers():
    """A quarter is held. Gathered: two blocks, a block's gradients, and all outside of blocks with gradients."""
    whole, quarter = (memory_of(job(strategy=Strategy(4, sharded=sharded))) for sharded in (False, True))
    assert whole.gathered == 0
    assert quarter.parameters == whole.parameters / 4
    assert quarter.gradients == whole.gradients / 4
    block = 4 * sum(w.numel for w in weights_of(TINY) if w.depth == 0)
    outside = 4 * sum(w.numel for w in weights_of(TINY) if not w.block)
    assert quarter.gathered == 3 * block + 2 * outside
    assert quarter.activations == whole.activations


def test_tensor_parallelism_splits_matrices_of_blocks():
    """Norms and embeddings are copied: 7 norms of 64 and 50 x 64 embeddings; all else is halved."""
    whole, halved = (memory_of(job(strategy=Strategy(tensor=n))) for n in (1, 2))
    replicated = 4 * (7 * 64 + 50 * 64)
    assert halved.parameters == replicated + (whole.parameters - replicated) / 2
    assert halved.activations < whole.activations
    assert halved.logits == whole.logits


def test_shared_weights_count_once():
    """A reference on the policy's base adds nothing; of a value model the head and an adapter of its own."""
    lora = LoraConfig(rank=2)
    policy = PlannedNetwork("policy", TINY, trained=True, lora=lora)
    alone = memory_of(job(network=policy))
    reference = PlannedNetwork("reference", TINY, shares_base=True)
    value = PlannedNetwork("value", TINY, trained=True, scalar=True, lora=lora, shares_base=True)
    both = memory_of(job(networks=(policy, reference, value)))
    assert both.frozen == alone.frozen
    assert both.parameters == 2 * alone.parameters + 4 * 64


def test_a_rollout_by_hand():
    """16 rows of 22 slots: keys and values of 2 x 16 in 3 blocks, packed matrices, three tensors of logits."""
    found = memory_of(job(rollout=ROLLOUT, rows=1))
    assert found.kv_cache == 2 * 4 * 3 * 16 * (2 * 16) * 22
    matrices = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160) + 50 * 64
    assert found.sampler == 4 * matrices + 3 * 4 * 16 * 50
    assert found.total == found.held + max(found.update, found.kv_cache + found.sampler, found.scoring)
    assert sum(found.peak_parts().values()) == found.total


def test_positions_of_a_response():
    """Prompts of 8 tokens, the longest of 10, shared by two responses of 12."""
    assert ROLLOUT.row_positions(micro_batches=1) == 4 + 12
    assert ROLLOUT.row_positions(micro_batches=2) == 5 + 12


def test_an_engine_elsewhere_has_cache_and_weights_of_its_own():
    found, ours = (memory_of(job(rollout=replace(ROLLOUT, elsewhere=where), rows=1)) for where in (True, False))
    assert found.kv_cache == found.sampler == 0
    assert found.scoring == ours.scoring


def test_ranks_share_a_rollout():
    one, two = (memory_of(job(rollout=ROLLOUT, strategy=Strategy(data=n))) for n in (1, 2))
    assert two.kv_cache == one.kv_cache / 2


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 64),
    tokens=st.integers(1, 31),
    name=st.sampled_from([name for name in PRECISIONS if name != "qlora"]),
    recompute=st.sampled_from(["none", "selective", "block"]),
    data=st.sampled_from([1, 2, 8]),
)
def test_more_rows_never_need_less_and_more_shards_never_hold_more(rows, tokens, name, recompute, data):
    one = job(rows=rows, tokens=tokens, precision=PRECISIONS[name], recompute=recompute)
    found = memory_of(one)
    assert memory_of(replace(one, rows=rows + 1)).total >= found.total
    assert memory_of(replace(one, tokens=tokens + 1)).total >= found.total
    assert (
        memory_of(replace(one, recompute="block")).activations <= memory_of(replace(one, recompute="none")).activations
    )
    sharded = memory_of(replace(one, strategy=Strategy(data=data, sharded=data > 1)))
    assert sharded.held <= found.held


@settings(max_examples=20, deadline=None)
@given(memory=st.integers(10**5, 10**9))
def test_the_largest_batch_fits_and_one_more_row_does_not(memory):
    rows = largest_batch(job(), memory)
    assert memory_of(job(rows=rows + 1)).total > memory
    if rows:
        assert memory_of(job(rows=rows)).total <= memory


def test_chunks_of_logits_are_smaller_on_a_cpu():
    """256 positions there, 2048 elsewhere, 8 bytes each for logits and softmax."""
    sizes = [logits_bytes(TINY, 4000, accelerator=name, trained=False) for name in ("cpu", "cuda")]
    assert sizes == [8 * 256 * 50, 8 * 2048 * 50]


def test_strategies_divide_devices_and_heads():
    """4 heads, 2 key/value heads, F = 160: tensor parallelism of 2, not of 4 or 8."""
    found = [one.name for one in strategies(8, heads=4, kv_heads=2, ff_width=160)]
    assert found == ["ddp x8", "fsdp2 x8", "fsdp2 x4 + tensor x2"]
    assert [one.name for one in strategies(1, heads=4, kv_heads=2, ff_width=160)] == ["single"]
    with pytest.raises(ValueError, match="tensor is 0"):
        Strategy(tensor=0)


def test_parameters_of_frozen_networks():
    reference = PlannedNetwork("reference", TINY)
    found = memory_of(job(networks=(job().policy, reference), frozen_bytes=2))
    assert found.frozen == 2 * count(weights_of(TINY))
