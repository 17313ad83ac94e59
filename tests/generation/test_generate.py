import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_options import STYLES, any_options
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import align.generation.generate as generate_module
from align.generation.decoder import Decoder, PackedDecoder, StaticDecoder
from align.generation.generate import generate
from align.generation.packed_blocks import can_pack
from align.generation.sampled_ids import SampledIds
from align.generation.sampling import row_uniforms, sampling_probs
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT

PROMPTS = [[5, 1, 9], [7], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 59], [1, 2, 3, 4, 5, 6]]
STOPS = tuple(range(40, 61))


def one_by_one(network, prompt, sampling, seed, stop_ids):
    """Sampling by its definition: the whole row through the network for every token, without cache or batch."""
    row, uniforms, logprobs = list(prompt), row_uniforms([seed], sampling.max_new_tokens)[0], []
    for step in range(min(sampling.max_new_tokens, network.config.context - len(prompt))):
        logits = network(torch.tensor([row]))[0, -1].float()
        for token in set(row):
            factor = sampling.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        probs = sampling_probs(logits[None], sampling)[0]
        passed = (probs.cumsum(-1) > uniforms[step] * probs.sum()).nonzero()
        token = int(probs.argmax()) if sampling.temperature == 0 else int(passed[0])
        row.append(token)
        logprobs.append(probs[token].log().item())
        if token in stop_ids:
            return row[len(prompt) :], logprobs, True
    return row[len(prompt) :], logprobs, False


SAMPLINGS = [
    SamplingConfig(max_new_tokens=12),
    SamplingConfig(temperature=0, max_new_tokens=60, repetition_penalty=1.2),
    SamplingConfig(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, max_new_tokens=60, repetition_penalty=0.9),
]


@pytest.mark.parametrize(
    ("style", "sampling", "stop_ids", "static"),
    [("llama", *case) for case in itertools.product(SAMPLINGS, [(), STOPS], [False, True])]
    + [(style, SAMPLINGS[0], STOPS, static) for style in STYLES for static in (False, True)],
)
@torch.no_grad()
def test_a_batch_equals_each_row_by_definition(network_of, style, sampling, stop_ids, static):
    network, seeds = network_of(**STYLES[style]), [11, 12, 13, 14, 15]
    samples = generate(network, PROMPTS, sampling, stop_ids=stop_ids, seeds=seeds, pad_id=33, static=static)
    assert (samples.ids.dtype, samples.logprobs.dtype) == (torch.int64, torch.float32)
    longest = 0
    for row, prompt in enumerate(PROMPTS):
        ids, logprobs, finished = one_by_one(network, prompt, sampling, 11 + row, stop_ids)
        longest = max(longest, len(ids))
        assert samples.ids[row, : len(ids)].tolist() == ids
        assert samples.ids[row, len(ids) :].eq(33).all()
        assert samples.mask[row].tolist() == [place < len(ids) for place in range(samples.mask.shape[1])]
        torch.testing.assert_close(samples.logprobs[row, : len(ids)], torch.tensor(logprobs), rtol=1e-4, atol=1e-5)
        assert samples.logprobs[row, len(ids) :].eq(0).all()
        assert samples.finished[row] == finished
    assert samples.ids.shape[1] == longest


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=any_options(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40),
    data=st.data(),
)
@torch.no_grad()
def test_the_packed_decoder_equals_the_plain_one(network_of, options, lengths, data):
    """Logits after the prompts, after a few tokens, and after dropping some rows."""
    network = network_of(**options)
    generator = torch.Generator().manual_seed(len(lengths))
    prompts = [
        torch.randint(0, 61, (length,), generator=generator).tolist() for length in sorted(lengths, reverse=True)
    ]
    plain, packed = (kind(network, prompts, slots=26) for kind in (Decoder, PackedDecoder))
    torch.testing.assert_close(packed.read_prompts(), plain.read_prompts(), rtol=1e-9, atol=1e-9)
    rows = len(prompts)
    for step in range(5):
        if step == 3:
            kept = torch.tensor(sorted(data.draw(st.sets(st.sampled_from(range(rows)), min_size=1))))
            rows = len(kept)
            plain.keep(kept)
            packed.keep(kept)
        ids = torch.randint(0, 61, (rows,), generator=generator)
        torch.testing.assert_close(packed.step(ids), plain.step(ids), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_row_draws_the_same_in_any_batch(network_of):
    """Its random numbers are the same; float64 logits round differently, by too little to tip one of these draws."""
    network, sampling = network_of(), SamplingConfig(max_new_tokens=20)
    together = generate(network, PROMPTS, sampling, stop_ids=STOPS, seeds=[1, 2, 3, 4, 5])
    for row, prompt in enumerate(PROMPTS):
        alone = generate(network, [prompt], sampling, stop_ids=STOPS, seeds=[row + 1])
        length = alone.ids.shape[1]
        assert torch.equal(together.ids[row, :length], alone.ids[0])
        assert int(together.mask[row].sum()) == length


def test_the_seed_decides_and_rows_differ(network_of):
    network, sampling = network_of(), SamplingConfig(max_new_tokens=10)
    first, again, other = (generate(network, [[1, 2]] * 3, sampling, seeds=seed).ids for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_first_tokens_follow_the_softmax(network_of):
    """4000 rows of one prompt: each token's frequency within 5 standard deviations, sqrt(p (1 - p) / n), plus 2 / n."""
    network, count = network_of(), 4000
    samples = generate(network, [[3, 1]] * count, SamplingConfig(max_new_tokens=1))
    with torch.no_grad():
        probs = network(torch.tensor([[3, 1]]))[0, -1].softmax(-1)
    found = samples.ids[:, 0].bincount(minlength=61) / count
    assert ((found - probs).abs() < 5 * (probs * (1 - probs) / count).sqrt() + 2 / count).all()
    torch.testing.assert_close(samples.logprobs[:, 0], probs.log().float()[samples.ids[:, 0]])


def test_finished_rows_leave_the_batch(network_of, monkeypatch):
    sizes = []
    step = PackedDecoder.step
    monkeypatch.setattr(PackedDecoder, "step", lambda self, ids: (sizes.append(len(ids)), step(self, ids))[1])
    samples = generate(
        network_of(), [[token] for token in range(40)], SamplingConfig(max_new_tokens=30), stop_ids=STOPS
    )
    alive = samples.mask.sum(0).tolist()
    assert sizes[-1] < 40
    # Waiting rows never pass an eighth of the batch.
    assert all(living > (1 - 1 / 8) * size or living == size for living, size in zip(alive[1:], sizes, strict=True))


@torch.no_grad()
def test_a_static_step_reads_nothing_back_and_moves_nothing(network_of):
    """The conditions of a CUDA graph: fixed memory, and no value of a tensor is read."""
    network = network_of(kv_heads=2).eval()
    decoder = StaticDecoder(network, PROMPTS[:2], slots=20)
    decoder.read_prompts()
    places = [decoder.positions.data_ptr(), decoder._ids.data_ptr(), decoder.cache.keys.data_ptr()]
    shapes = {decoder.step(torch.tensor([1, 2])).shape for _ in range(3)}
    assert len(shapes) == 1
    assert decoder.positions.tolist() == [6, 4]
    assert places == [decoder.positions.data_ptr(), decoder._ids.data_ptr(), decoder.cache.keys.data_ptr()]
    trace = make_fx(lambda ids: decoder.step(ids), tracing_mode="fake", _allow_non_fake_inputs=True)(
        torch.tensor([1, 2])
    )
    asked = {"aten._local_scalar_dense.default", "aten.nonzero.default"}
    assert not asked & {str(node.target) for node in trace.graph.nodes}


def test_rows_of_a_static_decoder_stay(network_of, monkeypatch):
    """Rows end after 1 to 30 tokens, checked every 16 steps: at most 16 steps after the last one."""
    steps = []
    monkeypatch.setattr(
        StaticDecoder, "step", lambda self, ids, step=StaticDecoder.step: steps.append(1) or step(self, ids)
    )
    samples = generate(network_of(), PROMPTS, SamplingConfig(max_new_tokens=50), stop_ids=STOPS, static=True)
    assert samples.finished.all()
    longest = samples.mask.sum(1).max().item()
    assert samples.ids.shape[1] == longest < 32
    assert len(steps) == -(-longest // 16) * 16 - 1
    with pytest.raises(RuntimeError, match="StaticDecoder"):
        StaticDecoder(network_of(), PROMPTS[:1], slots=20).keep(torch.tensor([0]))


def test_rows_stop_at_the_context(network_of):
    """Context 48: 46 tokens leave room for 2, 1 token for 47."""
    samples = generate(network_of(), [[1] * 46, [2]], SamplingConfig(max_new_tokens=100))
    assert samples.mask.sum(1).tolist() == [2, 47]
    assert not samples.finished.any()


def test_tokens_are_told_as_they_come(network_of):
    told = [[] for _ in PROMPTS]
    samples = generate(
        network_of(), PROMPTS, SamplingConfig(max_new_tokens=9), stop_ids=STOPS,
        on_token=lambda row, token: told[row].append(token),
    )  # fmt: skip
    assert told == [ids[mask].tolist() for ids, mask in zip(samples.ids, samples.mask, strict=True)]


def test_nothing_is_left_changed(network_of):
    network = network_of(dropout=0.5)
    network.train()
    network.model.layers[0].eval()
    modes = [module.training for module in network.modules()]
    rng, gradients = torch.get_rng_state(), torch.is_grad_enabled()
    first = generate(network, PROMPTS, SamplingConfig(max_new_tokens=5))
    assert torch.equal(first.ids, generate(network.eval(), PROMPTS, SamplingConfig(max_new_tokens=5)).ids)
    network.train()
    network.model.layers[0].eval()
    with pytest.raises(RuntimeError, match="told to stop"):
        generate(network, PROMPTS, SamplingConfig(max_new_tokens=5), on_token=complain)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled() == gradients
    # No inference tensors: what was sampled may be stored and trained on.
    assert not first.logprobs.is_inference()


def complain(row, token):
    raise RuntimeError("told to stop")


class Doubled(nn.Linear):
    """A layer whose output its weight does not determine."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_network_that_is_not_its_weights_goes_through_its_own_forward(network_of):
    network = network_of()
    assert can_pack(network)
    old = network.model.layers[0].self_attn.v_proj
    network.model.layers[0].self_attn.v_proj = Doubled(32, 32, bias=False).double()
    network.model.layers[0].self_attn.v_proj.weight = old.weight
    assert not can_pack(network)
    greedy = SamplingConfig(temperature=0, max_new_tokens=8)
    changed = generate(network, PROMPTS, greedy)
    network.model.layers[0].self_attn.v_proj = old
    with torch.no_grad():
        old.weight *= 2
    same = generate(network, PROMPTS, greedy)
    assert torch.equal(changed.ids, same.ids)
    torch.testing.assert_close(changed.logprobs, same.logprobs)


def test_hooks_and_the_reference_path_are_not_packed(network_of):
    network = network_of()
    handle = network.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not can_pack(network)
    handle.remove()
    network.model.reference_attention = True
    assert not can_pack(network)


@pytest.mark.parametrize("packed", [True, False])
def test_the_setting_dtype_is_autocast(network_of, monkeypatch, packed):
    """Bitwise, with packed weights and the network's own forward pass; a float32 network stays float32 after it."""
    monkeypatch.setattr(generate_module, "_cpu_has_bfloat16", lambda: True)
    network = network_of().float()
    network.model.reference_attention = not packed
    plain = generate(network, PROMPTS, SamplingConfig(max_new_tokens=6))
    rounded = generate(network, PROMPTS, SamplingConfig(max_new_tokens=6, dtype="bfloat16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = generate(network, PROMPTS, SamplingConfig(max_new_tokens=6))
    assert torch.equal(rounded.ids, expected.ids)
    assert torch.equal(rounded.logprobs, expected.logprobs)
    assert not torch.equal(rounded.logprobs, plain.logprobs)
    assert torch.equal(plain.logprobs, generate(network, PROMPTS, SamplingConfig(max_new_tokens=6)).logprobs)


def test_bfloat16_without_its_instructions_warns_once(network_of, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    generate_module._warn_of_emulation.cache_clear()
    network, sampling = network_of().float(), SamplingConfig(max_new_tokens=2, dtype="bfloat16")
    with pytest.warns(UserWarning, match=r"bfloat16.*instructions.*dtype"):
        generate(network, PROMPTS, sampling)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(network, PROMPTS, sampling)
    generate_module._warn_of_emulation.cache_clear()


@pytest.mark.parametrize(
    "settings", [{"qk_norm": "head", "kv_heads": 2}, {"norm": "layernorm", "positions": "learned"}]
)
def test_low_precision(settings, network_of):
    """Under autocast and in bfloat16: log-probs equal those of the plain forward pass to bfloat16's 3 digits."""
    network = network_of(**settings).float()
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
            network = network if autocast else network.bfloat16()
            samples = generate(network, PROMPTS[:1], SamplingConfig(max_new_tokens=6))
            row = torch.cat((torch.tensor(PROMPTS[0]), samples.ids[0]))[None]
            logprobs = network(row[:, :-1])[0, len(PROMPTS[0]) - 1 :].float().log_softmax(-1)
        expected = logprobs.gather(1, samples.ids[0][:, None])[:, 0]
        torch.testing.assert_close(samples.logprobs[0], expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts"),
        ([[1], []], {}, r"\b1\b.*\b0\b.*\b47\b"),
        ([[1] * 48], {}, r"\b0\b.*\b48\b.*\b47\b"),
        ([[1, 61]], {}, r"prompt.*\b0\b.*\b61\b"),
        ([[-1]], {}, r"prompt.*\b0\b.*\b61\b"),
        ([[1]], {"stop_ids": [61]}, r"stop.*\b61\b"),
        ([[1]], {"seeds": [1, 2]}, r"\b2\b.*\b1\b"),
    ],
)
def test_mistakes_are_named(network_of, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(network_of(), prompts, SamplingConfig(), **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(network_of, temperature):
    network = network_of()
    with torch.no_grad():
        network.model.norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match="logits"):
        generate(network, PROMPTS, SamplingConfig(temperature=temperature, max_new_tokens=3))


def test_greedy_equals_transformers_generate(network_of):
    """The same Llama weights in transformers, left-padded: the same greedy tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    network = GPT(replace(network_of().config)).double()
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=48, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    twin = LlamaForCausalLM(config).double().eval()
    twin.load_state_dict({**network.state_dict(), "lm_head.weight": network.output_weight})
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    expected = twin.generate(input_ids=ids, attention_mask=mask, max_new_tokens=15, do_sample=False)[:, width:]
    assert torch.equal(generate(network, PROMPTS, SamplingConfig(temperature=0, max_new_tokens=15)).ids, expected)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=["greedy", "filtered"])
@pytest.mark.parametrize("kind", ["plain", "packed", "static"])
@pytest.mark.parametrize("missing", [(), (3, 17)], ids=["padding", "gaps"])
@torch.no_grad()
def test_rows_that_are_no_tokens_are_never_sampled(network_of, kind, sampling, missing):
    """61 rows of which 20, but for two, are ids: as if the others did not exist, though they are the likeliest."""
    network, prompts, seeds = network_of(tied_embeddings=False), [[5, 1, 9], [7], [2, 3, 4]], [1, 2, 3]
    network.lm_head.weight[[*missing, *range(20, 61)]] *= 3
    some = SampledIds(20, missing)
    if kind == "plain":
        network.model.layers[0].register_forward_hook(lambda *_: None)
    assert can_pack(network) == (kind != "plain")
    samples = generate(network, prompts, sampling, stop_ids=(19,), seeds=seeds, static=kind == "static", sampled=some)
    assert int(samples.ids.max()) < 20
    assert not set(samples.ids[samples.mask].tolist()) & set(missing)

    def cropped(ids):
        logits = network(ids)[..., :20].clone()
        logits[..., list(missing)] = -torch.inf
        return logits

    cropped.config = network.config
    for row, prompt in enumerate(prompts):
        ids, logprobs, finished = one_by_one(cropped, prompt, sampling, seeds[row], (19,))
        assert samples.ids[row, : len(ids)].tolist() == ids
        torch.testing.assert_close(samples.logprobs[row, : len(ids)], torch.tensor(logprobs), rtol=1e-4, atol=1e-5)
        assert samples.finished[row] == finished
    free = generate(network, prompts, sampling, seeds=seeds, static=kind == "static")
    assert int(free.ids.max()) >= 20


def test_a_prompt_beyond_the_ids_is_refused(network_of):
    with pytest.raises(ValueError, match="prompt 0 .* 20"):
        generate(network_of(), [[20]], SamplingConfig(), sampled=SampledIds(20))
