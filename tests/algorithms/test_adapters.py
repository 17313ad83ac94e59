"""Stages that train adapters: the base stays, checkpoints are small and exact, the reference is what it should be."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from dpo_pairs import CONFIG, Log, World, fit, policy
from lightning.pytorch.callbacks import ModelCheckpoint
from test_language_model import Batches, make_batch
from test_reward import CONFIG as REWARD_CONFIG
from test_reward import Pairs
from test_reward import make_batch as make_pairs
from transformers import AutoModelForCausalLM

from align.adapters.lora import LoraConfig, adapter_parameters, adapters
from align.algorithms.dpo import DPO
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.pretrain import Pretrain
from align.algorithms.reward_modeling import Reward
from align.algorithms.sft import SFT
from align.callbacks.model_directory import ModelDirectory
from align.export.source import open_source
from align.io.directory import load_network, save_network
from align.io.lightning_checkpoint import load_checkpoint
from align.io.manifest import read_manifest, weights_fingerprint
from align.model.gpt import GPT, ScalarGPT
from align.training.optimization import OptimizerConfig, ScheduleConfig

LORA = LoraConfig(rank=2, alpha=8.0)
FAST = {"optimizer": OptimizerConfig(lr=0.02, weight_decay=0.0), "schedule": ScheduleConfig(kind="constant")}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def base_bytes(network):
    """The weights below the adapters."""
    return {name: tensor.clone() for name, tensor in network.named_parameters() if ".lora_" not in name}


def saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)


def test_sft_moves_the_adapter_and_nothing_else(tmp_path):
    from test_language_model import CONFIG

    base = GPT(CONFIG)
    save_network(base, tmp_path / "base", bos_id=None, eos_ids=[1], pad_id=0)
    stage = SFT(str(tmp_path / "base"), lora=LORA, **FAST)
    trainer = fit(stage, Batches([make_batch(2, 3, seed) for seed in range(4)]), limit_val_batches=0)
    learning = {name for name, tensor in stage.named_parameters() if tensor.requires_grad}
    assert all(".lora_" in name for name in learning)
    moved = {name: tensor for name, tensor in adapter_parameters(stage.network).items() if "lora_B" in name}
    assert len(moved) == 7
    assert all(bool(tensor.any()) for tensor in moved.values()), "every B left 0"
    start = base.state_dict()
    for name, tensor in base_bytes(stage.network).items():
        assert torch.equal(tensor, start[name.replace(".base_layer", "")]), name
    assert set(stage.state_dict()) == learning
    groups = trainer.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in groups) == len(learning)


def test_the_first_line_tells_what_learns(world, caplog, monkeypatch):
    told = []
    monkeypatch.setattr("align.algorithms.module.rank_zero_info", told.append)
    stage = world.stage(lora=LORA)
    fit(stage, world.data(), max_steps=1)
    whole = load_network(world.start).num_parameters()
    thin = sum(tensor.numel() for tensor in adapter_parameters(stage.network).values())
    assert any(f"{whole:,}" in line and f"{thin:,}" in line for line in told)


def test_pretraining_goes_on_with_adapters_and_a_fresh_network_gets_none(tmp_path):
    from test_language_model import CONFIG

    with pytest.raises(ValueError, match="lora.*gpt.*init_from"):
        Pretrain(CONFIG, lora=LORA)
    save_network(GPT(CONFIG), tmp_path / "base", bos_id=None, eos_ids=[1], pad_id=0)
    stage = Pretrain(init_from=str(tmp_path / "base"), lora=LORA, **FAST)
    fit(stage, Batches([make_batch(2, 3, 0)]), limit_val_batches=0)
    assert adapters(stage.network) == {"default": LORA}


def test_a_reward_model_trains_adapter_and_head(tmp_path):
    save_network(GPT(REWARD_CONFIG), tmp_path / "base", bos_id=None, eos_ids=[1], pad_id=0)
    stage = Reward(str(tmp_path / "base"), lora=LORA, normalise_on=0, **FAST)
    stage.configure_model()
    before, head = base_bytes(stage.network), stage.network.score.weight.clone()
    fit(stage, Pairs([make_pairs([(5, 4), (3, 6)], seed) for seed in range(3)]), limit_val_batches=0)
    after = base_bytes(stage.network)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"score.weight"}
    assert not torch.equal(head, stage.network.score.weight)
    assert "network.score.weight" in stage.state_dict()
    assert "network.model.embed_tokens.weight" not in stage.state_dict()


def test_dpo_needs_no_second_network(world):
    """The reference is the base itself: the first loss is ln 2 to float32's rounding."""
    log = Log()
    stage = world.stage(lora=LORA, reference_logprobs="on_the_fly", shared_prefix=False)
    fit(stage, world.data(), callbacks=[log])
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log.steps[-1]["train/loss"] < log.steps[0]["train/loss"]
    assert stage.reference.model.embed_tokens.weight is stage.network.model.embed_tokens.weight
    whole = load_network(world.start)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in stage.reference.state_dict().items())
    # The same network memory as without a reference: base and adapter, each once.
    ours = {tensor.data_ptr(): tensor.numel() for tensor in stage.parameters()}
    thin = sum(tensor.numel() for tensor in adapter_parameters(stage.network).values())
    assert sum(ours.values()) == whole.num_parameters() + thin


def test_cached_reference_logprobs_are_those_of_full_training(world):
    """An adapter over the same start has the same reference: the file that full training made is found."""
    fit(world.stage(), world.data(), max_steps=1)
    files = {path.name for path in (world.folder / "cache").glob("reference-*.npz")}
    fit(world.stage(lora=LORA), world.data(), max_steps=1)
    assert {path.name for path in (world.folder / "cache").glob("reference-*.npz")} == files
    fit(world.stage(lora=LoraConfig(rank=2, base_dtype="bfloat16")), world.data(), max_steps=1)
    assert len({path.name for path in (world.folder / "cache").glob("reference-*.npz")}) > len(files), "rounded base"


def trained_adapter(world, **settings) -> Path:
    """The adapter that a DPO run of a few steps wrote."""
    root = world.folder / "first"
    fit(world.stage(lora=LORA, **settings), world.data(), callbacks=[ModelDirectory()], default_root_dir=root)
    return root / "adapter"


def test_dpo_goes_on_from_an_adapter_with_a_frozen_copy_as_reference(world):
    directory, log = trained_adapter(world), Log()
    stage = world.stage(init_from=str(directory))
    fit(stage, world.data(), callbacks=[log])
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    start = load_network(directory.parent / "model")
    merged = open_source(str(directory)).network
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(stage.reference(ids), start(ids), atol=2e-5, rtol=0)
        torch.testing.assert_close(merged(ids), start(ids), atol=2e-5, rtol=0)
        assert (stage.network(ids) - start(ids)).abs().max() > 1e-3, "the policy moved on"
    ours, theirs = adapter_parameters(stage.network), adapter_parameters(stage.reference)
    assert stage.reference.model.embed_tokens.weight is stage.network.model.embed_tokens.weight
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)
    # Its cached log-probs are not those of the base.
    assert len(list((world.folder / "cache").glob("reference-*.npz"))) == 4


@pytest.mark.parametrize("lora", [LORA, LoraConfig(rank=2, dora=True), LoraConfig(rank=2, base_dtype="bfloat16")])
def test_checkpoints_hold_what_learns_and_resume_to_the_bit(world, lora):
    save = saving(world.folder)
    whole = world.stage(lora=lora)
    fit(whole, world.data(), callbacks=[save], enable_checkpointing=True, max_steps=3)
    expected = {name: tensor.clone() for name, tensor in adapter_parameters(whole.network).items()}
    file = world.folder / "checkpoints/step=2.ckpt"
    stored = torch.load(file, weights_only=True)
    assert set(stored["state_dict"]) == {name for name, p in whole.named_parameters() if p.requires_grad}
    resumed = world.stage(lora=lora)
    fit(resumed, world.data(), ckpt_path=str(file), max_steps=3)
    found = adapter_parameters(resumed.network)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_opens_on_its_base(world):
    save, root = saving(world.folder), world.folder / "run"
    stage = world.stage(lora=LORA)
    callbacks = [save, ModelDirectory(which="last")]
    fit(stage, world.data(), callbacks=callbacks, enable_checkpointing=True, max_steps=3, default_root_dir=root)
    file, ids = world.folder / "checkpoints/step=3.ckpt", torch.arange(30)[None]
    opened = load_checkpoint(file, root / "model")
    with torch.no_grad():
        torch.testing.assert_close(opened(ids), stage.network(ids), atol=2e-5, rtol=0)
    assert not adapters(opened)
    # The base was trained again since: nobody may mix the two.
    shutil.rmtree(world.start)
    with pytest.raises(FileNotFoundError, match=r"step=3\.ckpt.*/start\b"):
        load_checkpoint(file, root / "model")
    world.save(policy(7), "start")
    with pytest.raises(ValueError, match=rf"step=3\.ckpt.*/start\b.*{weights_fingerprint(world.start)[:12]}"):
        load_checkpoint(file, root / "model")
    with pytest.raises(ValueError, match=rf"/start\b.*{weights_fingerprint(world.start)[:12]}"):
        fit(world.stage(lora=LORA), world.data(), ckpt_path=str(file), max_steps=4)


def test_a_checkpoint_of_another_kind_of_training_is_refused(world):
    save = saving(world.folder)
    fit(world.stage(lora=LORA), world.data(), callbacks=[save], enable_checkpointing=True, max_steps=1)
    file = str(world.folder / "checkpoints/step=1.ckpt")
    with pytest.raises(ValueError, match="adapter.*lora"):
        fit(world.stage(), world.data(), ckpt_path=file, max_steps=2)
    with pytest.raises(ValueError, match=r"rank\D*2\b.*rank\D*4\b.*alpha\D*8\b"):
        fit(world.stage(lora=LoraConfig(rank=4, alpha=8.0)), world.data(), ckpt_path=file, max_steps=2)


def test_the_run_folder_has_the_merged_model_and_the_adapter(world):
    """peft on transformers, reading adapter/ on the base, gives what model/ gives and what the stage computes."""
    root = world.folder / "run"
    stage = world.stage(lora=LORA)
    fit(stage, world.data(), callbacks=[ModelDirectory(which="last")], default_root_dir=root)
    ids = torch.arange(30)[None]
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.start), root / "adapter").eval()
    with torch.no_grad():
        ours = stage.network.eval()(ids)
        torch.testing.assert_close(theirs(ids).logits, ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(load_network(root / "model")(ids), ours, atol=2e-5, rtol=0)
    manifest = read_manifest(root / "adapter")
    assert manifest["parent"]["weights"] == weights_fingerprint(world.start)
    assert manifest["step"] == 3
    source = open_source(str(root / "adapter"))
    assert source.tokenizer.fingerprint == manifest["tokenizer"]
    assert "7.87k" in (root / "model/README.md").read_text(), "the base's, not the adapter's too"


def test_an_adapter_over_fused_matrices_is_written_and_trained_further(world):
    """GPT-NeoX: peft computes what the stage does, and the next stage finds rank and targets as they were."""
    shape = {"norm": "layernorm", "feed_forward": "gelu_exact", "qkv_bias": True, "bias": True, "rope_fraction": 0.5}
    torch.manual_seed(1)
    world.start = world.save(GPT(replace(CONFIG, **shape, parallel_residual=True)), "gpt-neox")
    settings = replace(LORA, targets=("q_proj", "v_proj", "up_proj"))
    root, ids = world.folder / "first", torch.arange(30)[None]
    stage = world.stage(lora=settings)
    fit(stage, world.data(), callbacks=[ModelDirectory(which="last")], default_root_dir=root)
    base = AutoModelForCausalLM.from_pretrained(world.start)
    assert "gpt_neox" in base.config.model_type
    theirs = peft.PeftModel.from_pretrained(base, root / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, stage.network.eval()(ids), atol=1e-5, rtol=0)
    again = world.stage(init_from=str(root / "adapter"), lora=settings)
    fit(again, world.data(), max_steps=1)
    assert adapters(again.network)["default"].same_weights(settings)


def test_an_adapter_that_is_not_the_recipes_is_refused(world):
    directory = trained_adapter(world)
    with pytest.raises(ValueError, match=r"lora.*rank\D*4\b.*init_from.*rank\D*2\b"):
        fit(world.stage(init_from=str(directory), lora=LoraConfig(rank=4)), world.data(), max_steps=1)
    same = world.stage(init_from=str(directory), lora=LORA)
    fit(same, world.data(), max_steps=1)
    assert same.parent == str(directory)


def test_the_manifest_of_a_run_on_an_adapter_names_it(world):
    directory, root = trained_adapter(world), world.folder / "second"
    fit(world.stage(init_from=str(directory)), world.data(), callbacks=[ModelDirectory()], default_root_dir=root)
    assert read_manifest(root / "model")["parent"] == {
        "directory": str(directory),
        "weights": weights_fingerprint(directory),
        "stage": "dpo",
    }
    assert read_manifest(root / "adapter")["parent"]["weights"] == weights_fingerprint(world.start)


def test_dropout_in_an_adapter_is_for_stages_that_sample_nothing(world):
    with pytest.raises(ValueError, match=r"lora\.dropout.*0\.1.*DPO"):
        world.stage(lora=LoraConfig(dropout=0.1))


def test_a_reward_models_adapter_is_no_policy(world, tmp_path):
    stage = Reward(world.start, lora=LORA, normalise_on=0, **FAST)
    data = world.data()
    fit(stage, data, callbacks=[ModelDirectory(which="last")], default_root_dir=tmp_path / "reward", max_steps=1)
    with pytest.raises(ValueError, match="reward/adapter"):
        fit(
            DPO(str(tmp_path / "reward/adapter"), policy_evaluation=PolicyEvaluationConfig(prompts=0)),
            data,
            max_steps=1,
        )
    again = Reward(str(tmp_path / "reward/adapter"), normalise_on=0, **FAST)
    again.configure_model()
    assert isinstance(again.network, ScalarGPT)
    assert torch.equal(again.network.score.weight, stage.network.score.weight)
