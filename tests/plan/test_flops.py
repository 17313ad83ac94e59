"""FLOPs, derived by hand and from the networks' own count."""

import pytest
from planned_jobs import GPT2, TINY, job

from align.adapters.lora import LoraConfig, add_adapter
from align.model.gpt import GPT, ScalarGPT
from align.plan.flops import flops_of, flops_per_token, recomputed_per_token
from align.plan.job import PlannedNetwork, Rollout, Volume


def test_gpt2_by_hand():
    """6 FLOPs for each of 12 (4 D^2 + 2 D F) + V D weights, biases aside, and 12 L D T in attention."""
    found = flops_per_token(PlannedNetwork("policy", GPT2, trained=True), 1024)
    matrices = 12 * (4 * 768**2 + 2 * 768 * 3072) + 50257 * 768
    assert found.matrices == 6 * matrices == 741_192_192
    assert found.attention == 12 * 12 * 768 * 1024 == 113_246_208


@pytest.mark.parametrize("forward_only", [False, True])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=3)], ids=["whole", "lora"])
@pytest.mark.parametrize("scalar", [False, True], ids=["gpt", "scalar"])
def test_as_the_network_counts(scalar, lora, forward_only):
    network = (ScalarGPT if scalar else GPT)(TINY)
    if lora is not None:
        add_adapter(network, lora)
    planned = PlannedNetwork("policy", TINY, trained=True, scalar=scalar, lora=lora)
    found = flops_per_token(planned, 20, forward_only=forward_only)
    assert found.total == network.flops_per_token(20, forward_only=forward_only)


def test_frozen_weights_cost_four():
    """Rank 1 on q_proj alone: base matrices 4 each instead of 6, A and B 6 each, 3 blocks of 64 + 64 of them."""
    whole = flops_per_token(PlannedNetwork("policy", TINY, trained=True), 8).matrices
    lora = LoraConfig(rank=1, targets=("q_proj",))
    adapted = flops_per_token(PlannedNetwork("policy", TINY, trained=True, lora=lora), 8).matrices
    assert adapted == whole * 4 // 6 + 6 * 3 * (64 + 64)


def test_checkpointing_computes_a_forward_pass_of_blocks_again():
    """Per block: q and o 64 x 64, k and v 64 x 32, three matrices 64 x 160, and 4 H E T = 4 x 64 x 10 of attention."""
    network = PlannedNetwork("policy", TINY, trained=True)
    attention, feed = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 160
    assert recomputed_per_token(network, job(recompute="none"), 10) == 0
    assert recomputed_per_token(network, job(recompute="selective"), 10) == 3 * 2 * feed
    assert recomputed_per_token(network, job(recompute="block"), 10) == 3 * (2 * (attention + feed) + 4 * 64 * 10)


def test_a_run_of_ppo_adds_up_its_networks():
    """20 rows of 12 tokens, 8 of them sampled, two passes: 480 tokens trained, 160 + 80 sampled or prefilled."""
    policy = PlannedNetwork("policy", TINY, trained=True)
    value = PlannedNetwork("value", TINY, trained=True, scalar=True)
    reward = PlannedNetwork("reward", TINY, scalar=True)
    rollout = Rollout(10, 1, 4.0, 4, 8.0, 8, 2, 4, ("reward", "value"))
    volume = Volume(8, 480.0, 12.0, sampled=160.0, read={"reward": 240.0, "value": 240.0}, iterations=2)
    flops = flops_of(job(networks=(policy, value, reward), rollout=rollout, volume=volume))
    forward = {one.role: flops_per_token(one, 12, forward_only=True).total for one in (policy, value, reward)}
    assert flops.training == {"policy": 480 * 3 * forward["policy"], "value": 480 * 3 * forward["value"]}
    assert flops.sampling == (160 + 2 * 10 * 4) * forward["policy"]
    assert flops.reading == {"reward": 240 * forward["reward"], "value": 240 * forward["value"]}
    assert flops.model == flops.total == sum(flops.parts().values())
    # A value model runs its last block everywhere, a reward model once per row; neither has logits.
    assert forward["reward"] < forward["value"] < forward["policy"]


def test_an_unknown_length_has_no_flops():
    assert flops_of(job(volume=Volume(None, None, 32.0))) is None
