"""PPO with adapters: policy, value model, reference and reward model on one base, and none of them reaches another."""

import lightning.pytorch as pl
import pytest
import torch
from dpo_pairs import World
from dpo_pairs import fit as fit_pairs
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import CONFIG, Logged, fit, policy, ppo

from align.adapters.lora import LoraConfig, adapter_parameters, adapters, add_adapter
from align.adapters.merging import base_parameters
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import ValueConfig
from align.algorithms.reward_modeling import Reward
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import load_network, load_scalar, save_network
from align.model.gpt import GPT, ScalarGPT
from align.objectives import GRPO, RLOO
from align.rewards.functions import load_reward
from align.training.optimization import OptimizerConfig, ScheduleConfig

LORA = LoraConfig(rank=2, alpha=8.0)


def base_of(network):
    """The weights below the adapters, copied."""
    return {name: tensor.detach().clone() for name, tensor in base_parameters(network).items()}


def distinct(*networks):
    """Numbers in memory, those on one base once."""
    return sum({p.data_ptr(): p.numel() for network in networks for p in network.parameters()}.values())


def test_policy_value_and_reference_stand_on_one_base_that_never_moves():
    log, stage = Logged(), ppo(lora=LORA)
    stage.configure_model()
    assert isinstance(stage.value, ScalarGPT)
    thin = sum(tensor.numel() for tensor in adapter_parameters(stage.network).values())
    networks = stage.network, stage.value, stage.reference
    assert distinct(*networks) == policy().num_parameters() + 2 * thin + CONFIG.width
    before = base_of(stage.network)
    fit(stage, callbacks=[log])
    for network in networks:
        after = base_parameters(network)
        assert all(torch.equal(after[name], before[name]) for name in before if name in after)
    for network in (stage.network, stage.value):
        learned = [t for name, t in adapter_parameters(network).items() if "lora_B" in name]
        assert all(bool(tensor.any()) for tensor in learned), "every B left 0"
    assert not adapters(stage.reference)
    assert log.rows[0]["rollout/kl"] == pytest.approx(0.0, abs=1e-5), "the adapter changes nothing yet"
    assert abs(log.rows[1]["rollout/kl"]) > 1e-6
    assert log.rows[0]["rollout/logprob_gap"] < 1e-4, "the sampler merges what the trainer adds up"


def test_the_first_minibatch_of_every_iteration_has_ratio_1():
    """``_check_first`` asserts it; here the numbers themselves."""
    ratios = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
            if batch.position == 0:
                ratios.append(float(trainer.callback_metrics["train/ratio_max"]))

    fit(ppo(lora=LORA), callbacks=[Watch()], max_epochs=3)
    assert ratios == pytest.approx([1.0] * 3, abs=1e-4)


def test_the_values_gradient_never_reaches_the_policy():
    """In iterations that only warm up the value model the policy's adapter stays, to the bit."""
    stage = ppo(lora=LORA, value=ValueConfig(warmup_iterations=1))
    stage.configure_model()
    start = {name: tensor.clone() for name, tensor in adapter_parameters(stage.network).items()}
    value = {name: tensor.clone() for name, tensor in adapter_parameters(stage.value).items()}
    fit(stage, max_epochs=1)
    assert all(torch.equal(tensor, start[name]) for name, tensor in adapter_parameters(stage.network).items())
    assert any(not torch.equal(tensor, value[name]) for name, tensor in adapter_parameters(stage.value).items())
    # One loss alone, through both networks on the one base.
    for parameter in stage.parameters():
        parameter.grad = None
    ids = torch.arange(2, 10)[None]
    stage.network.hidden(ids).sum().backward()
    assert all(tensor.grad is None for tensor in stage.value.parameters())
    assert all(tensor.grad is not None for tensor in adapter_parameters(stage.network).values())
    assert all(tensor.grad is None for tensor in base_parameters(stage.network).values())


@pytest.mark.parametrize("estimator", [GRPO(), RLOO()], ids=["grpo", "rloo"])
def test_without_a_value_model(estimator):
    stage = ppo(lora=LORA, estimator=estimator, rollout={"group_size": 2})
    fit(stage, max_epochs=1)
    assert stage.value is None
    assert any(bool(t.any()) for name, t in adapter_parameters(stage.network).items() if "lora_B" in name)


def test_a_head_on_the_policys_trunk_learns_beside_its_adapter():
    stage = ppo(lora=LORA, value=ValueConfig(shared_trunk=True))
    fit(stage, max_epochs=1)
    assert {name for name in stage.state_dict() if name.startswith("value")} == {"value.score.weight"}


def test_checkpoints_hold_adapters_and_heads_and_resume_to_the_bit(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    whole = ppo(lora=LORA)
    fit(whole, callbacks=[save], enable_checkpointing=True)
    file = tmp_path / "step=3.ckpt"
    stored = torch.load(file, weights_only=True)["state_dict"]
    assert all(".lora_" in name or name == "value.score.weight" for name in stored)
    assert any(name.startswith("value.model.") for name in stored)
    resumed = ppo(lora=LORA)
    fit(resumed, ckpt_path=str(file))
    for ours, theirs in ((whole.network, resumed.network), (whole.value, resumed.value)):
        found = dict(ours.named_parameters())
        assert all(torch.equal(found[name], tensor) for name, tensor in theirs.named_parameters())


def test_activations_made_again_in_the_backward_pass_change_nothing():
    """Blocks of policy and value model are run again when neither is the last that ran."""
    from align.training.memory import MemoryConfig

    plain, again = ppo(lora=LORA), ppo(lora=LORA, memory=MemoryConfig(activation_checkpointing="block"))
    for stage in (plain, again):
        fit(stage)
    for ours, theirs in ((plain.network, again.network), (plain.value, again.value)):
        found = dict(ours.named_parameters())
        assert all(torch.equal(found[name], tensor) for name, tensor in theirs.named_parameters())


def test_frozen_networks_in_bfloat16_leave_the_shared_base_alone():
    from align.training.memory import MemoryConfig

    stage = ppo(lora=LORA, memory=MemoryConfig(frozen_dtype="bfloat16"))
    stage.configure_model()
    assert {p.dtype for p in stage.parameters()} == {torch.float32}


def test_a_base_in_bfloat16():
    stage = ppo(lora=LoraConfig(rank=2, base_dtype="bfloat16"))
    fit(stage, max_epochs=1)
    assert {tensor.dtype for tensor in stage.trained()} == {torch.float32}
    assert {tensor.dtype for tensor in base_parameters(stage.network).values()} == {torch.bfloat16}
    assert stage.value.score.weight.dtype == torch.float32


def test_dropout_is_refused():
    with pytest.raises(ValueError, match=r"lora\.dropout.*0\.2.*PPO"):
        ppo(lora=LoraConfig(dropout=0.2))


@pytest.fixture
def rewarded(tmp_path):
    """An SFT model, a reward model trained as an adapter on it, and one trained whole."""
    world = World(tmp_path)
    settings = {"optimizer": OptimizerConfig(lr=0.01), "schedule": ScheduleConfig(kind="constant"), "normalise_on": 4}
    for name, lora in (("thin", LoraConfig(rank=3, alpha=8.0, dropout=0.1)), ("whole", None)):
        stage, keep = Reward(world.start, lora=lora, **settings), ModelDirectory(which="last")
        fit_pairs(stage, world.data(), callbacks=[keep], default_root_dir=tmp_path / name)
    return world


def on(world, reward, **settings) -> PPO:
    stage = PPO(world.start, str(world.folder / reward), **{"lora": LORA} | settings)
    stage.configure_model()
    return stage


def test_a_reward_models_adapter_stands_on_the_policys_base(rewarded):
    """Policy, value, reference and reward: one base, three adapters, two heads. The value starts as the reward is."""
    stage = on(rewarded, "thin/adapter")
    networks = stage.network, stage.value, stage.reference, stage.reward_network
    sizes = [sum(t.numel() for t in adapter_parameters(network).values()) for network in networks]
    assert sizes[2] == 0
    assert distinct(*networks) == load_network(rewarded.start).num_parameters() + sum(sizes) + 2 * 16
    ids, lengths = torch.arange(30)[None], torch.tensor([30])
    raw = load_scalar(rewarded.folder / "thin/model").eval()
    with torch.no_grad():
        expected = raw.last_scores(ids, lengths)
        torch.testing.assert_close(stage.reward_network.last_scores(ids, lengths), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            stage.value.last_scores(ids, lengths), expected / stage.reward.std, atol=1e-4, rtol=0
        )
    apart = load_reward(str(rewarded.folder / "thin/model"))
    assert (stage.reward.mean, stage.reward.std) == (apart.mean, apart.std)
    assert adapters(stage.value)["default"].rank == 3, "the reward's own"
    assert all(t.requires_grad for t in adapter_parameters(stage.value).values())
    assert not any(t.requires_grad for t in stage.reward_network.parameters())
    dropouts = [part.p for part in stage.modules() if isinstance(part, torch.nn.Dropout)]
    assert dropouts
    assert not any(dropouts)


def test_beside_a_whole_reward_model_the_value_stands_on_its_weights(rewarded, monkeypatch):
    told = []
    monkeypatch.setattr("align.algorithms.ppo.rank_zero_info", told.append)
    stage = on(rewarded, "whole/model")
    assert any(stage.reward_name in line for line in told)
    value, reward = base_parameters(stage.value), base_parameters(stage.reward_network)
    assert all(value[name] is reward[name] for name in reward if name != "score.weight")
    assert value["score.weight"] is not reward["score.weight"]
    ids, lengths = torch.arange(30)[None], torch.tensor([30])
    with torch.no_grad():
        scores = stage.reward_network.last_scores(ids, lengths) / stage.reward.std
        torch.testing.assert_close(stage.value.last_scores(ids, lengths), scores)


def test_a_whole_policy_may_have_an_adapter_as_its_reward(rewarded):
    stage = on(rewarded, "thin/adapter", lora=None)
    assert adapters(stage.reward_network)
    assert not adapters(stage.value)
    ids, lengths = torch.arange(30)[None], torch.tensor([30])
    with torch.no_grad():
        scores = stage.reward_network.last_scores(ids, lengths) / stage.reward.std
        torch.testing.assert_close(stage.value.last_scores(ids, lengths), scores, atol=1e-5, rtol=0)
    assert all(tensor.requires_grad for tensor in stage.value.parameters())


def test_a_policys_adapter_is_no_reward(rewarded):
    save = rewarded.folder / "policy"
    stage = rewarded.stage(lora=LORA)
    fit_pairs(stage, rewarded.data(), callbacks=[ModelDirectory()], default_root_dir=save, max_steps=1)
    with pytest.raises(ValueError, match="policy/adapter"):
        load_reward(str(save / "adapter"))


def test_going_on_from_an_adapter(rewarded):
    """The reference is a frozen copy of it, and a value model without a reward model starts as the policy."""
    save = rewarded.folder / "policy"
    first = rewarded.stage(lora=LORA)
    fit_pairs(first, rewarded.data(), callbacks=[ModelDirectory(which="last")], default_root_dir=save)
    stage = PPO(str(save / "adapter"), "ppo_parts:share")
    stage.configure_model()
    start, ids = load_network(save / "model"), torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(stage.reference(ids), start(ids), atol=2e-5, rtol=0)
        torch.testing.assert_close(stage.value.hidden(ids), stage.network.hidden(ids))
    assert not any(tensor.requires_grad for tensor in stage.reference.parameters())
    assert stage.value.model.embed_tokens.weight is stage.network.model.embed_tokens.weight


def test_a_network_with_adapters_made_in_python(tmp_path):
    network = policy()
    add_adapter(network, LORA)
    stage = ppo(network=network)
    fit(stage, max_epochs=1)
    assert isinstance(stage.network, GPT)
    assert adapters(stage.value)
    save_network(stage.network, tmp_path / "out", bos_id=None, eos_ids=[1], pad_id=0)
