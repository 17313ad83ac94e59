"""Activation checkpointing, frozen networks in bfloat16, precisions, 8-bit optimizer state, and compiled widths."""

import socket
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from dpo_pairs import World
from dpo_pairs import fit as fit_pairs
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import fit as fit_ppo
from ppo_parts import ppo
from sharded_memory import recomputed_and_compiled
from test_language_model import Batches, fit, make_batch
from torch._dynamo.utils import counters

from align.adapters.lora import LoraConfig
from align.algorithms.pretrain import Pretrain
from align.batches import TokenBatch
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.objectives import GRPO
from align.training import memory as training
from align.training.memory import MemoryConfig, check_sharded_memory
from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=2, width=8, ff_width=24, context=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def eager_compiler(monkeypatch):
    """torch.compile without a C compiler; graphs are counted from zero."""
    monkeypatch.setattr(training, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def packed(rows: int, seed: int) -> TokenBatch:
    """Rows of 6 tokens that hold two documents of three."""
    batch = make_batch(rows, 5, seed)
    positions, documents = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1])
    return batch._replace(positions=positions.expand(rows, -1), documents=documents.expand(rows, -1))


def pretrain(config=CONFIG, **settings) -> Pretrain:
    settings = {"optimizer": OptimizerConfig(lr=0.01), "schedule": ScheduleConfig(kind="constant")} | settings
    return Pretrain(config, init_seed=0, **settings)


def trained(kind: str, world: World, memory: MemoryConfig, **settings) -> dict[str, torch.Tensor]:
    """The weights after a few steps of a stage."""
    if kind.startswith("pretrain"):
        dropout = 0.3 if "dropout" in kind else 0.0
        norms = "post" if "post" in kind else "pre"
        stage = pretrain(replace(CONFIG, dropout=dropout, norm_placement=norms), memory=memory, **settings)
        torch.manual_seed(0)
        fit(stage, Batches([packed(2, 1), make_batch(3, 4, 2), packed(2, 3)]))
    elif kind.startswith("dpo"):
        stage = world.stage(memory=memory, shared_prefix=kind == "dpo-shared", **settings)
        fit_pairs(stage, world.data(), limit_val_batches=0)
    else:
        more = {"estimator": GRPO(), "rollout": {"group_size": 4}} if kind == "grpo" else {}
        stage = ppo(memory=memory, **more, **settings)
        fit_ppo(stage, max_epochs=1)
    return {name: tensor.clone() for name, tensor in stage.state_dict().items()}


@pytest.mark.parametrize(
    "kind", ["pretrain", "pretrain-dropout", "pretrain-post", "dpo-shared", "dpo-plain", "ppo", "grpo"]
)
def test_recomputed_activations_give_the_same_bits(kind, world):
    plain = trained(kind, world, MemoryConfig())
    for what in ("selective", "block"):
        again = trained(kind, world, MemoryConfig(activation_checkpointing=what))
        assert all(torch.equal(plain[name], again[name]) for name in plain), what


def test_recomputing_keeps_less():
    """Bytes that the graph keeps for the backward pass, parameters left out."""
    config = GPTConfig(vocab_size=11, layers=3, heads=2, width=8, ff_width=24, context=8)
    network, ids = GPT(config), make_batch(4, 5, 0).ids
    kept = {what: bytes_kept(network, ids, what) for what in ("none", "selective", "block")}
    assert kept["block"] < 0.5 * kept["selective"] < 0.4 * kept["none"]


def bytes_kept(network, ids, what):
    """Storage that the graph holds, parameters left out."""
    training.recompute_activations(network, what)
    own, stored = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def keep(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks

    def counted_too(pack, unpack):
        return hooks(lambda tensor: keep(kept) if isinstance(kept := pack(tensor), torch.Tensor) else kept, unpack)

    # Only the innermost hooks see a tensor.
    with hooks(keep, lambda tensor: tensor), patch.object(torch.autograd.graph, "saved_tensors_hooks", counted_too):
        hidden = network.hidden(ids)
    del hidden
    return sum(tensor.untyped_storage().nbytes() for place, tensor in stored.items() if place not in own)


def test_frozen_networks_in_bfloat16(world):
    """The reference's weights, not the policy's; its log-probs stay within bfloat16's rounding of float32's."""
    memory = MemoryConfig(frozen_dtype="bfloat16")
    found = {}
    for name, chosen in (("plain", MemoryConfig()), ("frozen", memory)):
        stage = world.stage(memory=chosen, reference_logprobs="on_the_fly")
        stage.configure_model()
        batch = next(iter(loader(world)))
        with torch.no_grad():
            found[name] = torch.stack(stage._reference_logprobs("train", batch))
    assert {p.dtype for p in stage.reference.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in stage.network.parameters()} == {torch.float32}
    assert found["frozen"].dtype == torch.float32
    gap = (found["frozen"] - found["plain"]).abs().max()
    assert 0 < gap < 0.3, "about ten tokens of at most 0.05 nats each, and not float32 after all"
    fit_pairs(world.stage(memory=memory, reference_logprobs="on_the_fly"), world.data(), limit_val_batches=0)
    fit_ppo(ppo(memory=memory), max_epochs=1)


def loader(world):
    data = world.data()
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


def test_reference_log_probs_in_bfloat16_are_cached_apart(world, tmp_path):
    for memory in (MemoryConfig(), MemoryConfig(frozen_dtype="bfloat16")):
        data = world.data(cache_dir=tmp_path)
        fit_pairs(world.stage(memory=memory), data, limit_val_batches=0, max_steps=1)
    assert len(list(tmp_path.glob("reference-*.npz"))) == 2


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        ("bf16-true", r"memory\.low_precision_weights"),
        ("16-true", "bf16-mixed"),
    ],
)
def test_precisions_that_lose_what_is_learned_are_refused(precision, reason):
    with pytest.raises(ValueError, match=rf"trainer\.precision.*\b{precision}.*{reason}"):
        fit(pretrain(), Batches([make_batch(1, 5, 0)]), precision=precision)


def test_float16_needs_a_scaler_that_the_losses_are_before():
    """Checked apart from a Trainer: Lightning makes no 16-mixed one on a CPU."""
    from align.training.memory import check_precision

    with pytest.raises(ValueError, match=r"trainer\.precision.*\b16-mixed.*bf16-mixed"):
        check_precision("16-mixed", MemoryConfig(low_precision_weights=True))


def test_bf16_true_is_there_for_those_who_ask():
    stage = pretrain(memory=MemoryConfig(low_precision_weights=True))
    fit(stage, Batches([make_batch(1, 5, 0)]), precision="bf16-true")
    assert {p.dtype for p in stage.network.parameters()} == {torch.bfloat16}


def test_bfloat16_weights_lose_small_updates():
    """A weight of 1 and an update of 1e-3: float32 moves, bfloat16, whose next number below 1 is 0.996, does not."""
    moved = [torch.ones((), dtype=dtype) - 1e-3 < 1 for dtype in (torch.float32, torch.bfloat16)]
    assert moved == [True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_checkpointing": "all"}, r"memory\.activation_checkpointing.*'all'"),
        ({"frozen_dtype": "int8"}, r"memory\.frozen_dtype.*'int8'"),
        ({"compile_widths": (0,)}, r"memory\.compile_widths.*\[0\]"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**settings)


# The optimizer's state in 8 bits.

WIDE = GPTConfig(vocab_size=64, layers=1, heads=2, width=64, ff_width=128, context=8)


def test_eight_bits_learn_nearly_what_32_do():
    """60 steps on one batch, from ln 64 = 4.16: the losses end within 5% of the way of each other."""
    ids = torch.randint(64, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(ids, torch.ones(4, 6, dtype=torch.bool), None, None, torch.full((4,), 10))
    losses = {}
    for bits in (32, 8):
        stage = pretrain(WIDE, optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.0, state_bits=bits))
        losses[bits] = fit(stage, Batches([batch] * 60)).callback_metrics["train/loss"].item()
    assert losses[32] < 1.5
    assert losses[8] != losses[32]
    assert abs(losses[8] - losses[32]) < 0.05 * (4.16 - losses[32])


def test_eight_bit_state_resumes_to_the_bit(tmp_path):
    """Two epochs against one, a checkpoint and one more; what it holds of a matrix is codes and scales."""
    batches = [make_batch(2, 5, number) for number in range(3)]

    def run(ckpt_path=None):
        optimizer, schedule = OptimizerConfig(lr=3e-3, state_bits=8), ScheduleConfig(warmup_steps=2)
        stage = pretrain(WIDE, optimizer=optimizer, schedule=schedule)
        keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
        fit(stage, Batches(batches), ckpt_path=ckpt_path, max_epochs=2, enable_checkpointing=True, callbacks=[keeper])
        return stage

    whole = run()
    path = tmp_path / "epoch=0.ckpt"
    state = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    codes = [means["exp_avg"]["codes"] for means in state.values() if isinstance(means["exp_avg"], dict)]
    assert {tensor.dtype for tensor in codes} == {torch.uint8}
    assert len(codes) == 8, "seven matrices of the block and the embedding, tied"
    again = run(str(path))
    for one, other in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_eight_bits_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ModuleNotFoundError, match=r"optimizer\.state_bits\D*8\b.*torchao"):
        build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], OptimizerConfig(lr=0.1, state_bits=8))


# Compiled widths.


def test_default_widths():
    assert training.default_widths(300) == (64, 128, 256, 300)
    assert training.default_widths(64) == (64,)
    assert training.default_widths(40) == (40,)
    with pytest.raises(ValueError, match=r"widths.*\[9\].*\b8\b"):
        training.compile_blocks(GPT(CONFIG), [9])


def lengths_batch(length: int) -> TokenBatch:
    ids = torch.randint(11, (2, length + 1), generator=torch.Generator().manual_seed(length))
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), None, None, torch.full((2,), length))


def test_one_graph_for_each_width(eager_compiler):
    """Rows of 1 to 12 tokens in widths 4, 8 and 12, twice; checkpointed blocks are still one graph each."""
    config = replace(CONFIG, context=12)
    batches = [lengths_batch(length) for length in range(1, 13)]
    losses = []
    for compile in (False, True):
        memory = MemoryConfig(compile_widths=(4, 8), activation_checkpointing="selective")
        stage = pretrain(config, compile=compile, memory=memory)
        losses.append(fit(stage, Batches(batches * 2)).callback_metrics["train/loss"].item())
    assert eager_compiler["unique_graphs"] == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(("kind", "graphs"), [("dpo-shared", 1), ("ppo", 1), ("grpo", 1)])
def test_stages_with_compiled_networks_train_the_same(kind, graphs, world, eager_compiler):
    """One width, the context: one graph, shared by policy and value model, whose shapes are the same."""
    plain = trained(kind, world, MemoryConfig())
    compiled = trained(kind, world, MemoryConfig(), compile=True)
    assert eager_compiler["unique_graphs"] == graphs
    assert list(plain) == list(compiled)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=2e-4)


def test_padding_to_a_width_changes_nothing(eager_compiler):
    """Hidden states with documents, positions and indices, against the same network without widths."""
    network = GPT(replace(CONFIG, context=16))
    batch, indices = packed(3, 1), torch.tensor([2, 7, 11, 17])
    rows = {"positions": batch.positions, "documents": batch.documents}
    expected = [network.hidden(batch.ids, **rows), network.hidden(batch.ids, indices=indices)]
    training.compile_blocks(network)
    found = [network.hidden(batch.ids, **rows), network.hidden(batch.ids, indices=indices)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


# Together with other ways to train.


@pytest.mark.parametrize("what", ["selective", "block"])
def test_an_adapters_dropout_is_drawn_again_as_it_was(what):
    """The network itself has none, so only the adapter says that generators have to be put back."""

    def weights(recompute):
        network = GPT(CONFIG)
        network.initialise(0)
        stage = Pretrain(
            network=network,
            lora=LoraConfig(rank=2, dropout=0.5),
            memory=MemoryConfig(activation_checkpointing=recompute),
            optimizer=OptimizerConfig(lr=0.1),
        )
        torch.manual_seed(0)
        fit(stage, Batches([make_batch(2, 5, number) for number in range(4)]))
        return [parameter.detach().clone() for parameter in stage.trained()]

    assert all(torch.equal(one, other) for one, other in zip(weights("none"), weights(what), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"state_bits": 8, "compile": False, "devices": (2, 1)},
            r"optimizer\.state_bits\D*8\b.*trainer\.strategy",
        ),
        (
            {"state_bits": 32, "compile": True, "devices": (1, 2)},
            r"compile.*memory\.activation_checkpointing.*block",
        ),
    ],
)
def test_what_does_not_work_sharded_is_refused(settings, message):
    memory = MemoryConfig(activation_checkpointing="block")
    with pytest.raises(ValueError, match=message):
        check_sharded_memory(memory, **settings)
    check_sharded_memory(memory, state_bits=8, compile=True, devices=(1, 1))
    check_sharded_memory(memory, state_bits=32, compile=True, devices=(2, 1))


@pytest.mark.slow
def test_sharded_networks_recompute_and_compile():
    """Two processes share one network, over data and over heads: the gradients of the plain way, to rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(recomputed_and_compiled, (port,), nprocs=2)
