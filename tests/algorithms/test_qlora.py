"""QLoRA: stages train adapters over matrices of 4 bits, and what they write computes what they trained."""

import math

import pytest
import torch
from dpo_pairs import CONFIG, Log, World, fit
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import CONFIG as PPO_CONFIG
from ppo_parts import Logged, ppo
from ppo_parts import fit as fit_ppo
from ranks import on_two_ranks

from align.adapters.lora import LoraConfig, adapter_parameters
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import load_network
from align.io.lightning_checkpoint import load_checkpoint
from align.model.four_bit import FourBitLinear, is_four_bit, numel
from align.model.gpt import GPT
from align.training.qlora import BitsandbytesPrecision, FourBit, four_bit_plugin
from align.training.strategy import ModelParallel

LORA = LoraConfig(rank=2, alpha=8.0)
WIDE = {"width": 64, "ff_width": 64}
IDS = torch.arange(30)[None]


def wide(config):
    """A network on whose rows bitsandbytes' kernel for CPUs computes rightly, far from uniform."""
    network = GPT(config.__class__(**{**vars(config), **WIDE}))
    network.initialise(1)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.start = world.save(wide(CONFIG), "wide")
    return world


@pytest.mark.parametrize("lora", [LORA, LoraConfig(rank=2, alpha=8.0, dora=True)])
def test_dpo_learns_over_4_bits_and_writes_what_it_trained(world, lora):
    log, root = Log(), world.folder / "run"
    save = ModelCheckpoint(world.folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    stage = world.stage(lora=lora)
    settings = {"plugins": [FourBit(dtype="float32")], "enable_checkpointing": True, "default_root_dir": root}
    fit(stage, world.data(), callbacks=[log, save, ModelDirectory(which="last")], **settings)
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5), "the reference has 4 bits as well"
    assert log.steps[-1]["train/loss"] < log.steps[0]["train/loss"]
    matrices = [p for p in stage.network.parameters() if is_four_bit(p)]
    assert len(matrices) == 14
    assert all(p.nbytes * 2 == numel(p) for p in matrices)
    whole, opened = (
        load_network(root / "model"),
        load_checkpoint(world.folder / "checkpoints/step=3.ckpt", root / "model"),
    )
    with torch.no_grad():
        for written in (whole, opened):
            torch.testing.assert_close(written(IDS), stage.network(IDS), atol=1e-4, rtol=0)
        assert (load_network(world.start)(IDS) - whole(IDS)).abs().max() > 0.1

    expected = {name: tensor.clone() for name, tensor in adapter_parameters(stage.network).items()}
    resumed, file = world.stage(lora=lora), str(world.folder / "checkpoints/step=2.ckpt")
    fit(resumed, world.data(), ckpt_path=file, max_steps=3, plugins=[FourBit(dtype="float32")])
    found = adapter_parameters(resumed.network)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match=r"nf4-dq.*trainer\.plugins"):
        fit(world.stage(lora=lora), world.data(), ckpt_path=file, max_steps=3)


def test_it_goes_on_from_an_adapter_over_the_same_4_bits(world):
    root = world.folder / "first"
    first = world.stage(lora=LORA)
    fit(first, world.data(), callbacks=[ModelDirectory()], default_root_dir=root, plugins=[FourBit(dtype="float32")])
    log, stage = Log(), world.stage(init_from=str(root / "adapter"))
    fit(stage, world.data(), callbacks=[log], plugins=[FourBit(dtype="float32")], max_steps=1)
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(stage.reference(IDS), first.network(IDS), atol=1e-4, rtol=0)


def test_cached_reference_logprobs_are_not_those_of_whole_matrices(world):
    fit(world.stage(lora=LORA), world.data(), max_steps=1)
    files = {path.name for path in (world.folder / "cache").glob("reference-*.npz")}
    fit(world.stage(lora=LORA), world.data(), max_steps=1, plugins=[FourBit(dtype="float32")])
    assert len({path.name for path in (world.folder / "cache").glob("reference-*.npz")}) > len(files)


def test_ppos_networks_share_their_4_bits_and_learn():
    log, stage = Logged(), ppo(lora=LORA, network=wide(PPO_CONFIG))
    fit_ppo(stage, callbacks=[log], plugins=[FourBit(dtype="float32")])
    layers = [n.model.layers[0].mlp.up_proj for n in (stage.network, stage.value, stage.reference)]
    assert layers[0].base_layer is layers[1].base_layer is layers[2]
    assert is_four_bit(layers[2].weight)
    for network in (stage.network, stage.value):
        assert all(bool(t.any()) for name, t in adapter_parameters(network).items() if "lora_B" in name)
    assert log.rows[0]["rollout/kl"] == pytest.approx(0.0, abs=1e-5)
    assert log.rows[0]["rollout/logprob_gap"] < 1e-4
    assert abs(log.rows[1]["rollout/kl"]) > 1e-6


def test_products_are_bfloat16_and_everything_else_is_not(world):
    """Lightning's plugin would make bfloat16 the type of every new tensor."""
    seen, products = {}, set()
    stage = world.stage(lora=LORA)
    step = stage.training_step

    def watched(batch, batch_idx):
        layers = [layer for layer in stage.network.modules() if isinstance(layer, FourBitLinear)]
        with torch.autocast("cpu", enabled=False):  # bitsandbytes' layer would stay with what it reads first
            stage.network(batch.ids)
        note = [
            layer.register_forward_hook(lambda layer, inputs, output: products.add(output.dtype)) for layer in layers
        ]
        loss = step(batch, batch_idx)
        for handle in note:
            handle.remove()
        seen.update(layers=len(layers), new=torch.zeros(1).dtype, loss=loss.dtype)
        return loss

    stage.training_step = watched
    fit(stage, world.data(), max_steps=1, plugins=[FourBit()])
    assert products == {torch.bfloat16}
    assert seen == {"layers": 14, "new": torch.float32, "loss": torch.float32}
    assert all(part in stage.trainer.precision for part in ("bf16-mixed", "nf4-dq"))
    assert {p.dtype for p in stage.trained()} == {torch.float32}


def test_what_can_not_go_together_is_refused(world):
    with pytest.raises(ValueError, match=r"trainer\.plugins.*FourBit.*model\.init_args\.lora"):
        fit(world.stage(), world.data(), plugins=[FourBit(dtype="float32")])
    with pytest.raises(ValueError, match=r"trainer\.plugins.*BitsandbytesPrecision.*FourBit"):
        four_bit_plugin(BitsandbytesPrecision("nf4"), adapters=True, sharded=False)
    with pytest.raises(ValueError, match="mode.*'int8'.*nf4.*nf4-dq.*fp4.*fp4-dq"):
        FourBit("int8")
    with pytest.raises(ValueError, match="dtype.*'float16'.*bfloat16.*float32"):
        FourBit(dtype="float16")
    built = world.stage(lora=LORA)
    built.configure_model()
    with pytest.raises(ValueError, match=r"trainer\.plugins.*FourBit.*configure_model"):
        fit(built, world.data(), plugins=[FourBit(dtype="float32")])


def test_a_strategy_that_shards_is_refused(world):
    def work():
        with pytest.raises(ValueError, match=r"FourBit.*trainer\.strategy"):
            fit(world.stage(lora=LORA), world.data(), plugins=[FourBit()], strategy=ModelParallel(), devices=2)

    on_two_ranks(work, world.folder / "log")


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch):
    from lightning.fabric.plugins.precision import bitsandbytes as plugin

    monkeypatch.setattr(plugin, "_BITSANDBYTES_AVAILABLE", False)
    plugin._import_bitsandbytes.cache_clear()
    with pytest.raises(ValueError, match=r"bitsandbytes.*lightning-align\[qlora\]"):
        FourBit()
    monkeypatch.undo()
    plugin._import_bitsandbytes.cache_clear()
    FourBit()


def test_two_ranks_learn_over_4_bits_what_one_learns(world):
    """DDP copies weights of 4 bits from rank to rank; its two halves of a batch give the step of the whole."""

    def end(**trainer):
        stage = world.stage(lora=LORA)
        data = world.data(batch_size=2 if trainer else 4)
        fit(stage, data, plugins=[FourBit(dtype="float32")], limit_val_batches=0, **trainer)
        return {name: part.detach().clone() for name, part in adapter_parameters(stage.network).items()}

    def work():
        found = end(strategy="ddp", devices=2)
        if torch.distributed.get_rank() == 0:
            torch.save(found, world.folder / "end.pt")

    one = end()
    on_two_ranks(work, world.folder / "log")
    two = torch.load(world.folder / "end.pt", weights_only=True)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
