import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_options import any_options
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from align.model.attention import attend_fast, attend_reference, document_mask
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.positions import rotary_frequencies, rotary_tables, rotate, sinusoidal_embedding
from align.model.rope_scaling import Llama3Scaling

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@many
@given(options=any_options(), packed=st.booleans())
def test_fast_attention_equals_the_readable_path(network_of, tokens, options, packed):
    network, ids = network_of(**options), tokens(2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [-1] * 3]) if packed else None
    fast = network(ids, documents=documents)
    network.model.reference_attention = True
    close(network(ids, documents=documents), fast)


@many
@given(options=any_options(), lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), padding=st.integers(0, 5))
def test_packed_rows_equal_documents_alone(network_of, tokens, options, lengths, padding):
    network = network_of(**options)
    parts = [tokens(length, seed=number) for number, length in enumerate(lengths)]
    row = torch.cat([*parts, torch.zeros(padding, dtype=torch.int64)])[None]
    positions = torch.cat([*(torch.arange(length) for length in lengths), torch.zeros(padding, dtype=torch.int64)])[
        None
    ]
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    documents = torch.cat([numbers, torch.full((padding,), -1)])[None]
    logits = network(row, positions=positions, documents=documents)[0]
    assert not logits.isnan().any()
    for part, found in zip(parts, logits[: sum(lengths)].split(lengths), strict=True):
        close(found, network(part[None])[0])


def test_a_token_sees_nothing_after_it_and_padding_changes_nothing(network_of, tokens):
    network, ids = network_of(), tokens(1, 10)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 61
    before = network(ids)[:, :6]
    close(before, network(changed)[:, :6])
    close(before, network(ids[:, :6]))


def test_dropout_drops_in_both_paths_and_only_while_training(network_of, tokens):
    network, ids = network_of(dropout=0.5), tokens(1, 8)
    close(network(ids), network(ids))
    network.train()
    for network.model.reference_attention in (False, True):
        assert not torch.allclose(network(ids), network(ids))


@pytest.mark.parametrize("attend", [attend_fast, attend_reference])
def test_attention_on_one_head_by_hand(attend):
    """E = 1, keys 0 and ln 3 with query 1: scores 0 and ln 3, weights 1/4 and 3/4; values 0 and 8 give 6.

    The first token sees itself only: 0.
    """
    queries = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    keys = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(1, 1, 2, 1)
    values = torch.tensor([0.0, 8.0], dtype=torch.float64).view(1, 1, 2, 1)
    found = attend(queries, keys, values, mask=None, dropout=0.0)
    close(found.flatten(), torch.tensor([0.0, 6.0], dtype=torch.float64))


def test_document_mask_by_hand():
    """Documents 0 0 1 and one padding token: blocks of 2, 1 and 1 on the diagonal, lower triangle kept."""
    found = document_mask(torch.tensor([[0, 0, 1, -1]]))[0, 0].int().tolist()
    assert found == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_rotation_by_hand():
    """E = 4, theta 100: frequencies 1 and 1/10. At position 1, (1, 0, 0, 0) pairs components 0 and 2: cos 1, sin 1."""
    frequencies = rotary_frequencies(4, theta=100.0)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1]))
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = rotate(x, *rotary_tables(torch.tensor([1]), frequencies))
    torch.testing.assert_close(found, torch.tensor([[math.cos(1), 0.0, math.sin(1), 0.0]]))


def test_sinusoids_by_hand():
    """Width 4, position 2: sin 2, cos 2, sin 2/100, cos 2/100 (10000^(2/4) is 100)."""
    found = sinusoidal_embedding(torch.tensor([2]), 4)[0]
    expected = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("scaling", [Llama3Scaling(), Llama3Scaling(factor=32.0, original_context=64)])
def test_llama3_scaling_equals_transformers(scaling):
    parameters = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": scaling.factor,
                  "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
                  "original_max_position_embeddings": scaling.original_context}  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    torch.testing.assert_close(rotary_frequencies(128, theta=500000.0, scaling=scaling), expected)


def test_mistakes_are_named(network_of, tokens):
    network = network_of()
    with pytest.raises(ValueError, match=r"\b49\b.*\b48\b"):
        network(tokens(1, 49))
    with pytest.raises(ValueError, match=r"ids.*\(3,\)"):
        network(tokens(3))


def test_initialisation_has_the_stated_spread_and_touches_no_global_generator():
    """Residual projections: 0.02 / sqrt(2 * 8) = 0.005. Standard deviations of n normals are within 4 / sqrt(2 n)."""
    config = GPTConfig(vocab_size=512, layers=8, heads=2, width=64, embedding_std=1.0, tied_embeddings=False, bias=True)
    network = GPT(config)
    before = torch.get_rng_state()
    network.initialise(3)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            assert parameter.eq(0 if name.endswith("bias") else 1).all(), name
            continue
        expected = 0.02
        if "embed_tokens" in name:
            expected = 1.0
        elif "o_proj" in name or "down_proj" in name:
            expected = 0.005
        assert parameter.std().item() == pytest.approx(expected, rel=4 / (2 * parameter.numel()) ** 0.5), name


def test_the_seed_decides_the_weights():
    config = GPTConfig(vocab_size=16, layers=1, heads=1, width=8)
    first, second = GPT(config), GPT(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    second.initialise(1)
    assert not torch.equal(first.output_weight, second.output_weight)


def test_parameters_and_flops_by_hand():
    """Width 8, 2 heads of 4, 1 kv head, feed-forward 12, vocabulary 10, 3 layers, context 6.

    A block: q and o 8*8 each, k and v 8*4 each = 192; gate, up, down 8*12 each = 288; two norms 16: 496.
    All: 3 * 496 + embedding 80 + final norm 8 = 1576; untied 80 more. Without embeddings, tied: 1496; untied: 1576.
    Matrices: 3 * 480 + 80 = 1520; FLOPs per token: 6 * 1520 + 12 * 3 * 8 * 6 = 10848, tied or not.
    """
    config = {"vocab_size": 10, "layers": 3, "heads": 2, "kv_heads": 1, "width": 8, "ff_width": 12}
    tied, untied = GPT(GPTConfig(**config)), GPT(GPTConfig(**config, tied_embeddings=False))
    assert (tied.num_parameters(), untied.num_parameters()) == (1576, 1656)
    assert (tied.num_parameters(embeddings=False), untied.num_parameters(embeddings=False)) == (1496, 1576)
    assert tied.flops_per_token(6) == untied.flops_per_token(6) == 10848


def test_parameter_names_are_llamas():
    names = set(GPT(GPTConfig(vocab_size=8, layers=1, heads=1, width=8, norm_placement="post")).state_dict())
    block = "model.layers.0."
    assert names == {"model.embed_tokens.weight"} | {
        f"{block}{name}.weight"
        for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
        )
    }  # fmt: skip


def test_a_network_on_the_meta_device_takes_weights_without_a_copy(network_of, tokens):
    source = network_of()
    with torch.device("meta"):
        network = GPT(source.config)
    network.load_state_dict(source.state_dict(), assign=True)
    close(network(tokens(1, 5)), source(tokens(1, 5)))


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
def test_compiles_without_graph_breaks_and_runs_under_autocast(network_of, tokens, positions):
    network = network_of(positions=positions, qk_norm="head", kv_heads=2).float()
    ids, documents = tokens(2, 8), torch.tensor([[0] * 4 + [1] * 4] * 2)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, documents=documents), network(ids, documents=documents))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network.hidden(ids, documents=documents)
    torch.testing.assert_close(low.float(), network.hidden(ids, documents=documents), rtol=0.2, atol=0.2)
