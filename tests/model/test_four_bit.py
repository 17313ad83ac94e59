"""4-bit matrices: values computed by hand; networks on them equal networks with rounded weights."""

import builtins

import pytest
import torch
from bitsandbytes.nn import Params4bit
from torch import nn

from align.adapters.lora import LoraConfig, adapter_parameters, add_adapter, merge, merged_copy, share_base
from align.generation.generate import generate
from align.generation.packed_blocks import can_pack
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.four_bit import MODES, dense, is_four_bit, numel, replace_matrices, round_matrices
from align.model.gpt import GPT, ScalarGPT
from align.training import memory as training
from align.training.qlora import FourBit

# Dettmers et al. 2023, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
SHAPE = {"vocab_size": 61, "layers": 2, "heads": 4, "width": 64, "ff_width": 128, "context": 64}
IDS = torch.arange(7, 47)[None]


def by_hand(weight):
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    code = torch.tensor(NF4)
    nearest = code[(blocks[..., None] / largest[..., None] - code).abs().argmin(-1)] * largest
    return nearest.reshape(weight.shape)


def four_bits(*networks, mode="nf4-dq", root=None):
    plugin = FourBit(mode, "float32")
    root = nn.ModuleList(networks) if root is None else root
    replace_matrices(root, networks, lambda layer: plugin.quantized(layer, torch.device("cpu")))


def make(kind=GPT, seed=0, **shape):
    network = kind(GPTConfig(**SHAPE | shape))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def test_a_matrix_stands_for_quantiles_times_the_largest_of_64():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    layer = nn.Linear(64, 4, bias=False)
    layer.weight.data = weight.clone()
    made = FourBit("nf4", "float32").quantized(layer, torch.device("cpu"))
    nearest = by_hand(weight)
    torch.testing.assert_close(dense(made.weight), nearest, atol=1e-6, rtol=0)
    assert made.weight.numel() == 128, "two numbers to a byte"
    assert numel(made.weight) == 256
    assert not made.weight.requires_grad
    x = torch.randn(3, 64)
    torch.testing.assert_close(made(x), x @ nearest.T, atol=1e-5, rtol=0)


def test_any_matrix_can_be_read_again_on_a_cpu():
    """bitsandbytes uses wrong scales for row widths that are not multiples of 64."""
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    packed = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")
    torch.testing.assert_close(dense(packed), by_hand(weight), atol=1e-6, rtol=0)


@pytest.mark.parametrize("avx512", [False, True])
def test_evaluating_leaves_a_layer_as_it_was(avx512, monkeypatch):
    """bitsandbytes' own layer rounds its bias, and on CPUs with AVX512-BF16 repacks its matrix for good."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: avx512)
    layer = nn.Linear(64, 64)
    bias = layer.bias.detach().clone()
    made = FourBit("nf4", "bfloat16").quantized(layer, torch.device("cpu")).eval()
    before, x = dense(made.weight), torch.randn(3, 64)
    with torch.no_grad():
        first = made(x)
    assert first.dtype == torch.bfloat16
    assert torch.equal(made.bias, bias)
    assert torch.equal(dense(made.weight), before)
    torch.testing.assert_close(first.float(), x @ before.T + bias, atol=0.05, rtol=0.02)
    x.requires_grad_()
    made(x).float().sum().backward()
    torch.testing.assert_close(x.grad, before.sum(0).expand(3, -1), atol=0.05, rtol=0.02)


def test_autocast_is_of_the_device_that_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plugin = FourBit("nf4", "bfloat16")
    plugin.quantized(nn.Linear(64, 64), torch.device("cpu"))
    with plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")


def test_rounding_counts_blocks_over_the_ends_of_rows():
    network = make(width=32, ff_width=96, layers=1)
    weight = network.model.layers[0].self_attn.q_proj.weight.detach().clone()
    round_matrices(network, "nf4")
    rounded = network.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(rounded.detach(), by_hand(weight), atol=1e-6, rtol=0)


def test_rows_that_the_kernel_for_cpus_gets_wrong_are_refused():
    with pytest.raises(ValueError, match=r"\b32\b.*\b64\b"):
        four_bits(make(width=32))


@pytest.mark.parametrize("mode", MODES)
def test_rounding_in_place_gives_the_same_numbers(mode):
    ours, theirs = make(), make()
    four_bits(ours, mode=mode)
    round_matrices(theirs, mode)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS), atol=1e-5, rtol=0)
        assert (ours(IDS) - make()(IDS)).abs().max() > 1e-2, "4 bits are not nothing"


@pytest.mark.parametrize("shape", [{}, {"qkv_bias": True, "bias": True, "feed_forward": "gelu"}])
def test_only_the_matrices_of_the_blocks_change(shape):
    network, before = make(**shape), make(**shape)
    four_bits(network)
    places = {name for name, parameter in network.named_parameters() if is_four_bit(parameter)}
    assert places == {
        name for name, p in before.named_parameters() if name.startswith("model.layers.") and p.dim() == 2
    }
    old = before.state_dict()
    assert all(torch.equal(p, old[name]) for name, p in network.named_parameters() if name not in places)
    assert network.num_parameters() == before.num_parameters()
    assert network.flops_per_token(64, forward_only=True) == before.flops_per_token(64, forward_only=True)


def test_networks_on_one_base_stay_on_one_base():
    policy = make()
    reference, value = share_base(policy, GPT), share_base(policy, ScalarGPT)
    stage = nn.ModuleDict({"policy": policy, "reference": reference, "value": value})
    four_bits(policy, value, root=stage)
    layers = [network.model.layers[1].mlp.up_proj for network in (policy, reference, value)]
    assert layers[0] is layers[1] is layers[2]
    assert is_four_bit(layers[0].weight)
    assert type(value.score) is nn.Linear
    with pytest.raises(ValueError, match="4.bit"):
        share_base(policy, GPT)


@pytest.mark.parametrize("config", [LoraConfig(rank=4), LoraConfig(rank=4, dora=True), LoraConfig(targets=("v_proj",))])
def test_a_fresh_adapter_changes_nothing_and_merging_keeps_the_logits(config):
    network, plain = make(), make()
    four_bits(network)
    round_matrices(plain, "nf4-dq")
    add_adapter(network, config)
    with torch.no_grad():
        torch.testing.assert_close(network(IDS), plain(IDS), atol=1e-5, rtol=0)
        for parameter in adapter_parameters(network).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        whole = merged_copy(network)
        torch.testing.assert_close(whole(IDS), network(IDS), atol=1e-4, rtol=0)
        assert (whole(IDS) - plain(IDS)).abs().max() > 1e-2
    assert {type(parameter) for parameter in whole.parameters()} == {nn.Parameter}
    with pytest.raises(ValueError, match="4.bit.*merged_copy"):
        merge(network)


def gradients(network, recompute="none", *, compiled=False):
    """Of an adapter away from its start."""
    add_adapter(network, LoraConfig(rank=4), seed=5)
    generator = torch.Generator().manual_seed(6)
    for parameter in adapter_parameters(network).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    training.recompute_activations(network, recompute)
    if compiled:
        training.compile_blocks(network)
    network.hidden(IDS).square().sum().backward()
    return {name: parameter.grad for name, parameter in adapter_parameters(network).items()}


@pytest.mark.parametrize(
    "settings", [{}, {"recompute": "selective"}, {"recompute": "block"}, {"compiled": True}], ids=str
)
def test_gradients_are_those_over_the_rounded_matrices(settings, monkeypatch):
    monkeypatch.setattr(training, "BACKEND", "aot_eager")
    ours, plain = make().train(), make().train()
    four_bits(ours)
    round_matrices(plain, "nf4-dq")
    found, expected = gradients(ours, **settings), gradients(plain)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-3, rtol=1e-4)


def test_an_adapter_that_was_there_before_stays():
    network, plain = make(), make()
    round_matrices(plain, "nf4-dq")
    for each in (network, plain):
        add_adapter(each, LoraConfig(rank=4), seed=5)
        for parameter in adapter_parameters(each).values():
            parameter.data += 0.1
    four_bits(network)
    with torch.no_grad():
        torch.testing.assert_close(network(IDS), plain(IDS), atol=1e-4, rtol=0)


def test_sampling_makes_no_whole_copy():
    """Sampling uses the network's own forward pass, because packing would dequantize every matrix."""
    network, plain = make(), make()
    four_bits(network)
    round_matrices(plain, "nf4-dq")
    assert not can_pack(network)
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    ours, theirs = (generate(each, [[7, 8, 9], [5]], sampling) for each in (network, plain))
    assert torch.equal(ours.ids, theirs.ids)


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def refusing(name, *rest, **more):
        if name == "bitsandbytes":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ValueError, match=r"bitsandbytes.*lightning-align\[qlora\]"):
        round_matrices(make(), "nf4")
