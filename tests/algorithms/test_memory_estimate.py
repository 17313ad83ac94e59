"""What a step is said to hold, against what it holds."""

from dataclasses import replace

import pytest
import torch
from dpo_pairs import CONFIG as WORLD_CONFIG
from dpo_pairs import World
from ppo_parts import CONFIG as PPO_CONFIG
from ppo_parts import fit as fit_ppo
from ppo_parts import ppo
from test_language_model import Batches, fit, make_batch
from test_memory import bytes_kept

from align.adapters.lora import LoraConfig, add_adapter
from align.algorithms.memory_estimate import advice, estimate_memory, explain_out_of_memory, out_of_memory
from align.algorithms.planning import Source, networks_in_memory, networks_to_load
from align.algorithms.ppo_settings import ValueConfig
from align.algorithms.pretrain import Pretrain
from align.algorithms.sft import SFT
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.plan.activations import activation_bytes
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig

CONFIG = GPTConfig(vocab_size=50, layers=3, heads=4, kv_heads=2, width=64, ff_width=160, context=32)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("what", ["none", "selective", "block"])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, qk_norm="head"),
        replace(CONFIG, feed_forward="gelu", norm="layernorm", positions="learned", kv_heads=None, bias=True),
    ],
    ids=["swiglu", "qk_norm", "gelu"],
)
def test_activations_of_a_block_are_counted(config, what, narrow):
    """Two more blocks, at 4 x 32 and at 8 x 32 tokens: what the graph keeps more of, to 2%."""

    def kept(layers, rows):
        network, ids = GPT(replace(config, layers=layers)), torch.randint(50, (rows, 32))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return bytes_kept(network, ids, what)

    def counted(layers, rows):
        return activation_bytes(replace(config, layers=layers), rows, 32, recompute=what, narrow=narrow)

    for rows in (4, 8):
        found = kept(4, rows) - kept(2, rows)
        assert counted(4, rows) - counted(2, rows) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("what", ["none", "block"])
def test_activations_under_an_adapter_are_counted(what):
    """Frozen norms keep less, and an adapted matrix its product with A: two more blocks, to 2%."""
    lora = LoraConfig(rank=8, alpha=8)

    def kept(layers):
        network, ids = GPT(replace(CONFIG, layers=layers)), torch.randint(50, (4, 32))
        add_adapter(network, lora)
        return bytes_kept(network, ids, what)

    def counted(layers):
        return activation_bytes(replace(CONFIG, layers=layers), 4, 32, recompute=what, narrow=False, adapter=lora)

    assert counted(4) - counted(2) == pytest.approx(kept(4) - kept(2), rel=0.02)


def test_each_network_is_in_its_place(tmp_path):
    """DPO: policy, gradients and two means of 4 bytes each, and a reference of 2. PPO: policy and value model."""
    world = World(tmp_path)
    stage = world.stage(memory=MemoryConfig(frozen_dtype="bfloat16"), reference_logprobs="on_the_fly")
    fit(stage, Batches([]), max_epochs=0)
    numbers = sum(p.numel() for p in stage.network.parameters())
    found = estimate_memory(stage, 8, 20)
    assert (found.parameters, found.gradients, found.frozen) == (4 * numbers, 4 * numbers, 2 * numbers)
    assert found.optimizer == 8 * numbers + 4 * len(list(stage.network.parameters()))
    vocabulary, width = stage.network.output_weight.shape
    assert found.logits == 8 * 160 * vocabulary + 8 * vocabulary * width
    both, head = ppo(), ppo(value=ValueConfig(shared_trunk=True))
    for one in (both, head):
        fit_ppo(one, max_epochs=1)
    assert estimate_memory(both, 4, 9).activations == 2 * estimate_memory(head, 4, 9).activations
    for one in (both, head):
        assert estimate_memory(one, 4, 9).parameters == 4 * sum(p.numel() for p in one.trained())


def in_words(networks):
    """What memory depends on."""
    return {
        one.role: (one.config, one.trained, one.scalar, one.head_only, one.lora, one.shares_base) for one in networks
    }


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
@pytest.mark.parametrize("where", ["precomputed", "on_the_fly"])
def test_the_networks_of_dpo_are_known_before_they_are_built(tmp_path, where, lora):
    stage = World(tmp_path).stage(reference_logprobs=where, lora=lora)
    planned = in_words(networks_to_load(stage, {"policy": Source(WORLD_CONFIG)}))
    stage.configure_model()
    assert planned == in_words(networks_in_memory(stage))


@pytest.mark.parametrize("value", [None, ValueConfig(shared_trunk=True)], ids=["own", "shared"])
def test_the_networks_of_ppo_are_known_before_they_are_built(value):
    stage = ppo(value=value)
    planned = in_words(networks_to_load(stage, {"policy": Source(PPO_CONFIG)}))
    fit_ppo(stage, max_epochs=1)
    assert planned == in_words(networks_in_memory(stage))


def test_advice_is_sorted_by_what_it_gains_and_names_nothing_that_is_set():
    def settings(memory, **optimizer):
        stage = Pretrain(
            CONFIG, init_seed=0, memory=memory, optimizer=OptimizerConfig(**optimizer), schedule=ScheduleConfig()
        )
        fit(stage, Batches([make_batch(1, 5, 0)]), max_epochs=0)
        return advice(stage, 16, 32, batch_size=16)

    found = settings(MemoryConfig())
    assert [one.saved for one in found] == sorted((one.saved for one in found), reverse=True)
    assert [one.setting for one in found] == [
        "data.batch_size 8 with trainer.accumulate_grad_batches 2",
        "memory.activation_checkpointing block",
        "optimizer.state_bits 8",
    ]
    found = settings(MemoryConfig(activation_checkpointing="block"), state_bits=8)
    assert [one.setting for one in found] == ["data.batch_size 8 with trainer.accumulate_grad_batches 2"]


def test_adapters_are_advised_where_a_stage_goes_on_from_a_model(tmp_path):
    """They leave the gradients and the means of everything else out: 12 bytes a parameter, and the step counts."""
    stage = SFT(World(tmp_path).start)
    fit(stage, Batches([make_batch(1, 5, 0)]), max_epochs=0)
    held = estimate_memory(stage, 1, 8)
    found = {one.setting: one.saved for one in advice(stage, 1, 8)}
    assert found["lora.rank 16"] == held.gradients + held.optimizer
    assert held.frozen == 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_about_memory(error, is_memory):
    assert out_of_memory(error) is is_memory


def test_a_tensor_that_does_not_fit_says_so():
    """What this torch says when an allocation fails is among the words that are known."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert out_of_memory(error.value)


def test_before_the_first_batch_there_is_no_shape():
    stage = Pretrain(CONFIG, init_seed=0)
    assert "gradients" not in explain_out_of_memory(stage, batch_size=4)
    fit(stage, Batches([make_batch(1, 5, 0)]), max_epochs=0)
    message = explain_out_of_memory(stage, batch_size=4)
    assert "gradients" in message
    assert " 0 " not in message


def test_the_base_below_adapters_is_frozen_and_not_advised_to_be_rounded(tmp_path):
    """frozen_dtype converts networks of their own, and not the base that training runs through."""
    stage = SFT(World(tmp_path).start, lora=LoraConfig(rank=2, alpha=4))
    fit(stage, Batches([make_batch(1, 5, 0)]), max_epochs=0)
    sizes = {True: 0, False: 0}
    for parameter in stage.network.parameters():
        sizes[parameter.requires_grad] += 4 * parameter.numel()
    found = estimate_memory(stage, 1, 8)
    assert (found.parameters, found.gradients, found.frozen) == (sizes[True], sizes[True], sizes[False])
    assert not [one for one in advice(stage, 1, 8) if one.setting.startswith("memory.frozen_dtype")]
