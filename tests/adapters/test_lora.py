"""LoRA adapters: same logits as peft on transformers, an unchanged base, files in both directions."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.adapters.lora import (
    LoraConfig,
    active_adapter,
    adapter_parameters,
    adapters,
    add_adapter,
    convert_base,
    copy_adapter,
    merge,
    share_base,
    unmerge,
    use_adapter,
    using_adapter,
)
from align.generation.generate import generate
from align.generation.packed_blocks import can_pack
from align.generation.sampling_config import SamplingConfig
from align.io.adapter_directory import Base, load_adapter, save_adapter
from align.io.directory import load_network, load_scalar, save_network
from align.io.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weights_fingerprint, write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT

IDS = torch.arange(7, 47)[None]
SHAPE = {"vocab_size": 61, "layers": 2, "heads": 4, "width": 32, "ff_width": 64, "context": 64}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
NEOX = {"norm": "layernorm", "feed_forward": "gelu_exact", "qkv_bias": True, "bias": True, "rope_fraction": 0.5} | {
    "parallel_residual": True,
    "tied_embeddings": False,
}
SMALL = LoraConfig(rank=4, alpha=6.0)


@torch.no_grad()
def shaken(network, seed=3):
    """Random values for every trainable parameter, so that a misplaced tensor is noticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def make(kind=GPT, **shape):
    return shaken(kind(GPTConfig(**SHAPE | shape))).eval()


def adapted(config=SMALL, kind=GPT, *, seed=4, **shape):
    network = make(kind, **shape)
    add_adapter(network, config)
    return shaken(network, seed)


def targets_of(network):
    return tuple(dict.fromkeys(name.split(".")[-3] for name in adapter_parameters(network) if "lora_A" in name))


def write(network, directory):
    save_network(network, directory, bos_id=None, eos_ids=[2], pad_id=0)
    return directory


def logits(network, ids=IDS):
    with torch.no_grad():
        return network(ids) if isinstance(network, GPT) else network(ids, torch.tensor([ids.shape[1]]))


@pytest.fixture
def stored(tmp_path):
    """A base, an adapter with a large effect, and the network with both."""
    base = write(make(), tmp_path / "base")
    network = load_network(base).eval()
    add_adapter(network, SMALL)
    shaken(network, 4)
    save_adapter(network, tmp_path / "adapter", base=str(base))
    return base, tmp_path / "adapter", network


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ({}, {}),
        ({"tied_embeddings": False, "kv_heads": 2}, {"rslora": True, "targets": ("q_proj", "down_proj")}),
        ({}, {"dora": True}),
        ({"qkv_bias": True}, {"dora": True, "rslora": True, "alpha": 2.5}),
        ({"qk_norm": "head"}, {"dropout": 0.5}),
        (GPT2, {}),
        (GPT2, {"rslora": True, "targets": ("q_proj", "v_proj", "o_proj")}),
        (GPT2, {"dora": True, "targets": ("k_proj", "down_proj")}),
        (NEOX, {}),
        (NEOX, {"rslora": True, "targets": ("q_proj", "v_proj"), "rank": 3, "alpha": 7.0}),
        (NEOX, {"dora": True, "targets": ("v_proj", "up_proj")}),
    ],
    ids=[
        *("llama", "rank-stabilised, some targets", "dora", "qwen2 with both", "qwen3 with dropout"),
        *(f"{name}, {kind}" for name in ("gpt2", "gpt-neox") for kind in ("all", "some targets", "dora")),
    ],
)
def test_peft_on_transformers_gives_our_logits(tmp_path, shape, settings):
    """Our adapter in PeftModel on transformers' base; merged, saved and loaded; exported."""
    from align.export.peft_adapter import merged

    base = write(make(**shape), tmp_path / "base")
    network = load_network(base).eval()
    plain = logits(network)
    add_adapter(network, LoraConfig(**{"rank": 4, "alpha": 6.0} | settings))
    assert torch.equal(logits(network), plain), "a fresh adapter changes nothing"
    ours = logits(shaken(network, 4).eval())
    assert (ours - plain).abs().max() > 1
    save_adapter(network, tmp_path / "adapter", base=str(base))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours, atol=1e-5, rtol=0)
    again = load_adapter(tmp_path / "adapter", GPT).eval()
    assert torch.equal(logits(again), ours)
    assert adapters(again)["default"].same_weights(replace(adapters(network)["default"], targets=targets_of(network)))
    assert torch.equal(logits(network), ours)
    whole = load_network(write(network, tmp_path / "merged")).eval()
    torch.testing.assert_close(logits(whole), ours, atol=3e-5, rtol=0)
    assert torch.equal(logits(network), ours), "writing merges a copy"
    torch.testing.assert_close(logits(merged(tmp_path / "adapter", None)[0].eval()), ours, atol=3e-5, rtol=0)


def test_a_reward_models_adapter_brings_its_head_to_peft(tmp_path):
    base = write(make(), tmp_path / "base")
    network = load_scalar(base).eval()
    add_adapter(network, SMALL)
    assert network.score.weight.requires_grad
    shaken(network)
    save_adapter(network, tmp_path / "adapter", base=str(base))
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    theirs = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert theirs(IDS).logits[0, 0] == pytest.approx(float(logits(network)), abs=1e-5)
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", ScalarGPT).eval()), logits(network))


def test_what_peft_wrote_is_trained_on(tmp_path):
    base = write(make(), tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, use_dora=True)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    shaken(model).eval().save_pretrained(tmp_path / "adapter")
    network = load_adapter(tmp_path / "adapter", GPT, trained=True).eval()
    expected = LoraConfig(rank=4, alpha=12.0, targets=("q_proj", "v_proj"), dropout=0.1, dora=True)
    assert adapters(network) == {"default": expected}
    with torch.no_grad():
        torch.testing.assert_close(logits(network), model(IDS).logits, atol=1e-5, rtol=0)
    assert all(tensor.requires_grad for tensor in adapter_parameters(network).values())


def test_only_the_adapter_learns_and_off_it_is_the_base_exactly():
    plain = make()
    network = adapted()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        network(IDS).square().mean().backward()
        optimizer.step()
    learning = [name for name, tensor in network.named_parameters() if tensor.requires_grad]
    assert len(learning) == 2 * 2 * 7, "A and B of seven matrices in two blocks"
    assert all(".lora_" in name for name in learning)
    with using_adapter(network, None):
        assert torch.equal(logits(network), logits(plain))
        assert [name for name, p in network.named_parameters() if p.requires_grad] == learning
    assert not torch.allclose(logits(network), logits(plain))
    kept = share_base(network, GPT).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def test_merge_and_unmerge():
    for config in (SMALL, LoraConfig(rank=4, dora=True)):
        network = adapted(config)
        ours, weight = logits(network), network.model.layers[0].self_attn.q_proj.base_layer.weight
        before = weight.clone()
        merge(network)
        assert (weight - before).abs().max() > 0.1
        torch.testing.assert_close(logits(network), ours, atol=3e-5, rtol=0)
        with pytest.raises(ValueError, match="merge"):
            merge(network)
        unmerge(network)
        torch.testing.assert_close(weight, before, atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match="merge"):
            unmerge(network)


def test_several_adapters_in_one_network():
    network = adapted()
    first = logits(network)
    add_adapter(network, LoraConfig(rank=2, targets=("v_proj",)), name="second", seed=1)
    assert active_adapter(network) == "second"
    plain = logits(network)
    second = logits(shaken(network, 5))
    with using_adapter(network, "default"):
        assert torch.equal(logits(network), first)
    with using_adapter(network, None):
        assert torch.equal(logits(network), plain), "a fresh one changes nothing"
    assert torch.equal(logits(network), second)
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="'third'.*default.*second"):
        use_adapter(network, "third")
    with pytest.raises(ValueError, match="'default'"):
        add_adapter(network, SMALL)


def test_networks_share_a_base_and_nothing_else():
    policy = adapted()
    value, reference, copy = share_base(policy, ScalarGPT), share_base(policy, GPT), share_base(policy, GPT)
    copy_adapter(policy, copy)
    before = logits(policy)
    assert torch.equal(logits(copy.eval()), before)
    assert torch.equal(logits(reference.eval()), logits(make()))
    add_adapter(value, SMALL)
    value.last_scores(IDS, torch.tensor([40])).sum().backward()
    assert all(tensor.grad is None for tensor in policy.parameters())
    shaken(value)
    assert torch.equal(logits(policy), before)
    every = {p.data_ptr(): p.numel() for network in (policy, value, reference, copy) for p in network.parameters()}
    thin = sum(tensor.numel() for tensor in adapter_parameters(policy).values())
    assert sum(every.values()) == policy.num_parameters() + 3 * thin + SHAPE["width"], (
        "one base, three adapters, a head"
    )
    assert not any(tensor.requires_grad for tensor in adapter_parameters(copy).values())


def test_a_base_in_bfloat16_has_adapters_in_float32():
    for dora in (False, True):
        network = make(ScalarGPT)
        convert_base(network, torch.bfloat16)
        plain = network.hidden(IDS)
        add_adapter(network, LoraConfig(rank=4, dora=dora))
        assert {tensor.dtype for tensor in network.parameters() if tensor.requires_grad} == {torch.float32}
        assert {tensor.dtype for tensor in network.parameters() if not tensor.requires_grad} == {torch.bfloat16}
        torch.testing.assert_close(network.hidden(IDS), plain, atol=0.1 if dora else 0, rtol=0)


def test_merged_weights_of_a_bfloat16_base_keep_what_was_learned(tmp_path):
    """bfloat16 has 8 bits and would lose a change of 1/1000 of a weight."""
    network = make()
    convert_base(network, torch.bfloat16)
    add_adapter(network, SMALL)
    with torch.no_grad():
        for name, tensor in adapter_parameters(network).items():
            if "lora_B" in name:
                tensor.add_(1e-4)
    layer = network.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    whole = load_network(write(network, tmp_path / "merged"))
    assert torch.equal(whole.model.layers[0].self_attn.q_proj.weight, expected)
    assert not torch.equal(expected.bfloat16().float(), expected)


def test_sampling_packs_the_merged_weights():
    """The packed decoder against the network's own forward pass: greedy ids and log-probs."""
    for config in (SMALL, LoraConfig(rank=2, targets=("o_proj", "up_proj"), dora=True)):
        network = adapted(config)
        assert can_pack(network)
        sampling = SamplingConfig(temperature=0, max_new_tokens=8)
        fast = generate(network, [[1, 2, 3], [4, 5]], sampling)
        network.model.reference_attention = True
        slow = generate(network, [[1, 2, 3], [4, 5]], sampling)
        assert torch.equal(fast.ids, slow.ids)
        torch.testing.assert_close(fast.logprobs, slow.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"lora\.rank\D*0\b"),
        ({"alpha": 0.0}, r"lora\.alpha.*0\.0"),
        ({"dropout": 1.0}, r"lora\.dropout.*1\.0.*\[0, 1\)"),
        ({"targets": ()}, r"lora\.targets.*\(\)"),
        ({"targets": ("q_proj", "c_attn")}, r"lora\.targets.*'c_attn'.*q_proj.*k_proj"),
        ({"base_dtype": "int4"}, r"lora\.base_dtype.*'int4'.*float32.*bfloat16"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


def test_a_target_that_the_network_lacks():
    message = r"lora\.targets.*'gate_proj'.*q_proj.*k_proj.*v_proj.*o_proj.*up_proj"
    with pytest.raises(ValueError, match=message):
        add_adapter(make(feed_forward="gelu"), LoraConfig(targets=("gate_proj",)))


def test_frozen_matrices_cost_no_gradient_of_their_own():
    """By hand: 6 per element of an adapter, 4 per element of a frozen matrix, 2 for either in the forward pass."""
    network, plain = make(), make()
    add_adapter(network, SMALL)
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 61 * 32
    thin = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    attention = 12 * 2 * 32 * 10
    assert plain.flops_per_token(10) == 6 * matrices + attention
    assert network.flops_per_token(10) == 4 * matrices + 6 * thin + attention
    assert network.flops_per_token(10, forward_only=True) == 2 * (matrices + thin) + attention // 3
    value = share_base(network, ScalarGPT)
    assert value.flops_per_token(10, forward_only=True) * 3 == value.flops_per_token(10)


@pytest.mark.parametrize(
    ("shape", "targets"), [(GPT2, ["c_attn", "mlp.c_proj"]), (NEOX, ["query_key_value", "dense"])], ids=["gpt2", "neox"]
)
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_peft_on_a_fused_matrix_is_one_of_its_rank_on_each_part(tmp_path, shape, targets, dora):
    base = write(make(**shape), tmp_path / "base")
    config = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=targets, use_dora=dora, fan_in_fan_out=shape is GPT2, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    shaken(model).eval().save_pretrained(tmp_path / "adapter")
    network = load_adapter(tmp_path / "adapter", GPT, trained=True).eval()
    fourth = "down_proj" if shape is GPT2 else "o_proj"
    expected = LoraConfig(rank=6, alpha=9.0, targets=("q_proj", "k_proj", "v_proj", fourth), dora=dora)
    assert adapters(network)["default"].same_weights(expected)
    with torch.no_grad():
        torch.testing.assert_close(logits(network), model(IDS).logits, atol=1e-5, rtol=0)
    save_adapter(network, tmp_path / "again", base=str(base))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(network), atol=3e-5, rtol=0)


def test_the_adapter_of_a_fused_matrix_by_hand(tmp_path):
    """GPT-NeoX has q, k and v of head 0, then those of head 1: 4 rows each, of which k's start at rows 4 and 16."""
    network = adapted(
        LoraConfig(rank=2, alpha=3.0, targets=("k_proj",)), **NEOX | {"width": 8, "heads": 2, "layers": 1}
    )
    save_adapter(network, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    name = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_{}.weight"
    assert stored.keys() == {name.format("A"), name.format("B")}
    a, b = stored[name.format("A")], stored[name.format("B")]
    ours = adapter_parameters(network)
    expected_a, expected_b = torch.zeros(6, 8), torch.zeros(24, 6)
    expected_a[2:4] = ours["model.layers.0.self_attn.k_proj.lora_A.weight"].detach()
    block = ours["model.layers.0.self_attn.k_proj.lora_B.weight"].detach()
    expected_b[4:8, 2:4], expected_b[16:20, 2:4] = block[:4], block[4:]
    assert torch.equal(a, expected_a)
    assert torch.equal(b, expected_b)
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (2, {"query_key_value": 6})
    assert (config["lora_alpha"], config["alpha_pattern"]) == (3, {"query_key_value": 9.0})


def test_a_reward_models_adapter_on_fused_matrices(tmp_path):
    base = write(make(**NEOX), tmp_path / "base")
    network = load_scalar(base).eval()
    add_adapter(network, SMALL)
    save_adapter(shaken(network), tmp_path / "adapter", base=str(base))
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", ScalarGPT).eval()), logits(network))


def test_fused_adapters_that_cannot_be_trained_further(tmp_path):
    base = write(make(**NEOX), tmp_path / "base")
    network = load_network(base)
    add_adapter(network, SMALL)
    save_adapter(shaken(network), tmp_path / "adapter", base=str(base))
    wide = write(make(**NEOX, width=64), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"query_key_value\.lora_A\.weight.*\[12, 32\].*/wide\b.*\[12, 64\]"):
        load_adapter(tmp_path / "adapter", GPT, base=wide)
    changed(tmp_path / "adapter" / ADAPTER_CONFIG, rank_pattern={"query_key_value": 5})
    with pytest.raises(ValueError, match=r"rank_pattern.*'query_key_value': 5"):
        load_adapter(tmp_path / "adapter", GPT)


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, r"adapter_config\.json.*peft_type.*'IA3'.*'LORA'"),
        ({"rank_pattern": {"q_proj": 2}}, r"adapter_config\.json.*rank_pattern.*\{'q_proj': 2\}"),
        ({"alpha_pattern": {"q_proj": 2}}, r"adapter_config\.json.*alpha_pattern.*\{'q_proj': 2\}"),
        ({"bias": "all"}, r"adapter_config\.json.*bias.*'all'"),
        ({"modules_to_save": ["lm_head"]}, r"adapter_config\.json.*modules_to_save.*\['lm_head'\]"),
        ({"r": 0}, r"adapter_config\.json.*\br is 0\b"),
        ({"r": 8}, r"q_proj\.lora_A\.weight.*\[4, 32\].*/base\b.*\[8, 32\]"),
        ({"use_dora": True}, r"lora_magnitude_vector.*/base\b"),
        ({"base_model_name_or_path": None}, r"adapter_config\.json.*base_model_name_or_path"),
        (
            {"base_model_name_or_path": "/no/such/place"},
            r"adapter_config\.json.*base_model_name_or_path.*/no/such/place",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_adapter_directories_that_cannot_be(stored, fields, message):
    changed(stored[1] / ADAPTER_CONFIG, **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_adapter(stored[1], GPT)


def test_damaged_and_missing_weights(stored):
    base, directory, _ = stored
    path = directory / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*lora_B\.weight"):
        load_adapter(directory, GPT)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load_adapter(directory, GPT)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        load_adapter(base, GPT)


def test_another_base_is_named(stored, tmp_path):
    base, directory, _ = stored
    wide = write(make(width=64), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight.*\[4, 32\].*/wide\b.*\[4, 64\]"):
        load_adapter(directory, GPT, base=wide)
    write_manifest(
        directory, {"stage": "sft", "parent": {"directory": str(base), "weights": weights_fingerprint(base)}}
    )
    load_adapter(directory, GPT)
    other = write(shaken(make(), 9), tmp_path / "other")
    found, needed = (weights_fingerprint(weights)[:12] for weights in (other, base))
    with pytest.raises(ValueError, match=f"{needed}.*/other.*{found}"):
        load_adapter(directory, GPT, base=other)


def test_an_adapter_stands_on_weights_in_memory_if_they_are_its_base(stored, tmp_path):
    base, directory, network = stored
    policy = load_network(base)
    standing = load_adapter(directory, GPT, onto=Base(policy, weights_fingerprint(base)))
    assert torch.equal(logits(standing.eval()), logits(network))
    assert standing.model.embed_tokens.weight is policy.model.embed_tokens.weight
    apart = load_adapter(directory, GPT, onto=Base(policy, "other weights"))
    assert apart.model.embed_tokens.weight is not policy.model.embed_tokens.weight


def test_fingerprints_tell_adapters_apart(stored):
    _, directory, _ = stored
    before = weights_fingerprint(directory)
    changed(directory / ADAPTER_CONFIG, lora_alpha=7)
    assert weights_fingerprint(directory) != before, "alpha multiplies the weights"
