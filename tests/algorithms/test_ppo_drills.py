"""What goes wrong with PPO: each is one clear line, and nothing is lost."""

import copy
import sys
import types
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import CONFIG, Logged, PromptModule, Tokens, fit, policy, ppo

from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, ValueConfig
from align.algorithms.rollout import StartedRollout
from align.io.directory import save_network
from align.model.gpt import ScalarGPT
from align.objectives import GRPO, K1, K3, RLOO, DrGRPO
from align.rewards.reward_model import RewardModel
from align.rewards.weighted_sum import Part, WeightedSum
from align.training.optimization import OptimizerConfig, ScheduleConfig


def reward_that(monkeypatch, function) -> str:
    module = types.ModuleType("drill_reward")
    module.score = function
    monkeypatch.setitem(sys.modules, "drill_reward", module)
    return "drill_reward:score"


class Failing:
    """Fine for an iteration, then it fails in a way of its own."""

    def __init__(self, then):
        self.calls, self.then = 0, then

    def __call__(self, prompts, responses):
        self.calls += 1
        return [0.5] * len(responses) if self.calls == 1 else self.then(responses)


def _raise(responses):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (_raise, "'drill_reward:score'.*KeyError"),
        (lambda r: [float("nan")] * len(r), r"'drill_reward:score'.*nan.*\b0\b.*\b8\b"),
        (lambda r: [1.0], r"'drill_reward:score'.*\b1\b.*\b8\b"),
    ],
    ids=["raises", "nan", "count"],
)
def test_a_failing_reward_leaves_the_last_checkpoint(tmp_path, monkeypatch, then, message):
    """It fails in the second iteration; the checkpoint of the first is whole, and the run goes on from it."""
    name = reward_that(monkeypatch, Failing(then))
    save = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1, save_on_train_epoch_end=True)
    with pytest.raises(ValueError, match=message) as caught:
        fit(ppo(reward=name), callbacks=[save], enable_checkpointing=True)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys.modules["drill_reward"], "score", lambda p, r: [0.5] * len(r))
    assert fit(ppo(reward=name), ckpt_path=str(tmp_path / "last.ckpt")).global_step == 8


def test_log_probs_leave_out_the_ids_that_the_tokenizer_lacks():
    """Trainer and sampler agree on the distribution; over all rows they would differ by the missing ids' share."""

    class Gaps(Tokens):
        missing_ids = (1, 2)

    data, logged = PromptModule(), Logged()
    data.tokenizer = Gaps()
    fit(ppo(), data=data, callbacks=[logged], max_epochs=1)
    assert logged.rows[0]["rollout/logprob_gap"] < 1e-4


def test_every_response_without_an_end_is_penalised_and_counted():
    class Endless(Tokens):
        stop_ids = ()

    data, logged = PromptModule(), Logged()
    data.tokenizer = Endless()
    fit(ppo(scoring=ScoringConfig(missing_eos_penalty=2.0)), data=data, callbacks=[logged], max_epochs=1)
    row = logged.rows[0]
    assert row["rollout/eos_rate"] == 0
    assert row["rollout/length"] == 6
    assert row["rollout/score"] == pytest.approx(row["rollout/reward"] - 2.0, abs=1e-6)


def test_a_batch_of_one():
    trainer = fit(ppo(rollout={"episodes": 1}, update={"epochs": 1, "minibatches": 1}))
    assert trainer.global_step == 2


@pytest.mark.parametrize("estimator", [GRPO(), DrGRPO(), RLOO()], ids=["grpo", "dr-grpo", "rloo"])
def test_a_constant_reward_moves_no_weight(monkeypatch, estimator):
    """Eight rewards of 0.7, whose float32 mean is not 0.7: the advantages are 0, and so is every gradient."""
    name = reward_that(monkeypatch, lambda prompts, responses: [0.7] * len(responses))
    settings = {"kl": KLConfig(kl_coef=0.0), "scoring": ScoringConfig(missing_eos_penalty=0.0)}
    stage = ppo(reward=name, estimator=estimator, rollout={"episodes": 8, "group_size": 8}, **settings)
    fit(stage, max_epochs=1)
    for weight, start in zip(stage.network.parameters(), policy().parameters(), strict=True):
        assert torch.equal(weight, start)


def test_a_group_size_that_does_not_divide():
    with pytest.raises(ValueError, match=r"rollout\.group_size\D*3\b.*rollout\.episodes\D*8\b"):
        RolloutConfig(episodes=8, group_size=3)
    with pytest.raises(ValueError, match=r"rollout\.group_size\D*1\b.*GRPO\D*2\b"):
        ppo(estimator=GRPO())


def test_a_full_context_leaves_no_room():
    with pytest.raises(ValueError, match=r"\b24\b.*\b23\b"):
        fit(ppo(rollout={"episodes": 2}, update={"minibatches": 1}), data=PromptModule(lengths=(3, 24)))


def test_a_reference_of_its_own_is_loud_and_one_of_another_vocabulary_refused(tmp_path):
    save_network(policy(seed=5), tmp_path / "other", bos_id=None, eos_ids=(1,), pad_id=0)
    with pytest.warns(UserWarning, match=r"reference.*KL.*-?\d"):
        fit(ppo(reference=str(tmp_path / "other")), max_epochs=1)
    save_network(policy(config=replace(CONFIG, vocab_size=13)), tmp_path / "wide", bos_id=None, eos_ids=(1,), pad_id=0)
    with pytest.raises(ValueError, match=r"/wide\b.*\b13\b.*\b12\b"):
        fit(ppo(reference=str(tmp_path / "wide")))


def test_a_reward_model_of_another_tokenizer_is_refused(monkeypatch):
    class Other(Tokens):
        fingerprint = "another"

    model = RewardModel("rm", ScalarGPT(CONFIG), Other())
    monkeypatch.setattr("align.algorithms.ppo.load_reward", lambda name, **_: model)
    monkeypatch.setattr("align.algorithms.ppo_networks.load_scalar", lambda name: ScalarGPT(CONFIG))
    with pytest.raises(ValueError, match="'rm'.*another.*tokens"):
        fit(ppo(reward="rm"))


def test_the_parts_of_a_weighted_sum_are_logged():
    """A reward model and a function; the sum is 2 x one - 0.5 x the other, and ``gold`` may be a sum as well."""
    network, other = ScalarGPT(CONFIG), ScalarGPT(CONFIG)
    models = [RewardModel("rm", of, Tokens(), mean=0.3, std=2.0) for of in (network, other)]
    parts = {"model": Part(models[0], 2.0), "share": Part("ppo_parts:share", -0.5)}
    logged = Logged()
    stage = ppo(reward=WeightedSum(parts), gold=WeightedSum({"again": Part("ppo_parts:share")}))
    fit(stage, max_epochs=1, callbacks=[logged])
    (row,) = logged.rows
    assert row["rollout/reward"] == pytest.approx(2 * row["reward/model"] - 0.5 * row["reward/share"], abs=1e-5)
    assert row["rollout/gold"] == row["reward/share"]
    assert stage.reward_network is network
    assert "reward/again" not in row
    assert stage.sources()["reward.parts.share"] == "ppo_parts:share"
    with pytest.raises(ValueError, match="2 reward models.*rm, rm"):
        fit(ppo(reward=WeightedSum({"a": Part(models[0]), "b": Part(models[1])})))


def test_a_reward_model_scores_ids_and_the_value_model_starts_from_it(monkeypatch):
    """The value of the last state is the reward of the whole response plus the mean over the deviation."""
    network = ScalarGPT(CONFIG)
    model = RewardModel("rm", network, Tokens(), mean=0.3, std=2.0)
    monkeypatch.setattr("align.algorithms.ppo.load_reward", lambda name, **_: model)
    monkeypatch.setattr("align.algorithms.ppo_networks.load_scalar", lambda name: copy.deepcopy(network))
    logged = Logged()
    stage = ppo(reward="rm", gold="ppo_parts:share")
    fit(stage, max_epochs=1, callbacks=[logged])
    torch.testing.assert_close(model.network.score.weight, network.score.weight)
    assert "rollout/gold" in logged.rows[0]
    fresh = ppo(reward="rm")
    fresh.configure_model()
    torch.testing.assert_close(fresh.value.score.weight, network.score.weight / 2.0)
    ids = torch.randint(2, 12, (2, 5))
    scores = model.score_ids(ids, torch.tensor([5, 5]))
    torch.testing.assert_close(fresh.value.last_scores(ids, torch.tensor([5, 5])), scores + 0.15)


def test_a_policy_that_is_not_the_one_that_sampled_is_refused(monkeypatch):
    """Old log-probs shifted by 0.1 nats: the first ratio is 0.9."""
    plain = PPO.roll_out

    def shifted(self, *args):
        rollout, metrics = plain(self, *args)
        return rollout._replace(logprobs=rollout.logprobs - 0.1), metrics

    monkeypatch.setattr(PPO, "roll_out", shifted)
    with pytest.raises(RuntimeError, match=r"iteration 0\b.*KL"):
        fit(ppo())


def test_the_trainers_log_probs_replace_the_samplers_beyond_the_tolerance(monkeypatch):
    """A sampler that is off by 0.5 nats: told with the number, and the first ratio is 1 all the same."""
    plain = StartedRollout.finish

    def off(*args, **kwargs):
        rollout = plain(*args, **kwargs)
        return rollout._replace(logprobs=rollout.logprobs - 0.5 * rollout.mask)

    monkeypatch.setattr(StartedRollout, "finish", off)
    logged = Logged()
    stage = ppo()
    fit(stage, callbacks=[logged])
    assert stage.recompute_logprobs is True
    assert [row["rollout/logprob_gap"] for row in logged.rows] == pytest.approx([0.5, 0.5], abs=1e-4)


def test_the_run_ends_before_it_trains_on_a_kl_beyond_the_budget():
    """At this learning rate the second rollout is beyond any budget: 4 steps were made, and the rollout is logged."""
    logged = Logged()
    schedule = ScheduleConfig(kind="constant", warmup_steps=0)
    stage = ppo(kl=KLConfig(stop_kl=1e-4), optimizer=OptimizerConfig(lr=1e-2), schedule=schedule)
    trainer = fit(stage, max_epochs=9, callbacks=[logged])
    assert trainer.global_step == 4
    assert trainer.callback_metrics["rollout/kl"] > 1e-4
    assert len(logged.rows) == 2


def test_an_iteration_that_moved_too_far_ends_early_and_is_validated():
    """Every optimizer step is beyond the target: one step an iteration, and validation after each."""
    validated = []
    stage = ppo(update={"target_kl": 1e-9, "epochs": 3}, optimizer=OptimizerConfig(lr=1e-2))
    stage.on_validation_epoch_end = lambda: validated.append(stage.trainer.global_step)
    trainer = fit(stage, max_epochs=3, limit_val_batches=1.0)
    # The first step of an iteration is at ratio 1 and KL 0; the second shows the move.
    assert trainer.global_step == 6
    assert validated == [2, 4, 6]
    assert trainer.fit_loop.total_batch_idx == 5


@pytest.mark.parametrize("shared", [False, True])
def test_the_policy_stands_still_while_the_critic_warms_up(shared: bool):
    stage = ppo(
        value=ValueConfig(shared_trunk=shared, warmup_iterations=2),
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1),
    )
    stage.configure_model()
    before = {name: p.clone() for name, p in stage.network.named_parameters()}
    head = stage.value.score.weight.clone()
    fit(stage, max_epochs=2)
    assert all(torch.equal(p, before[name]) for name, p in stage.network.named_parameters())
    assert not torch.equal(head, stage.value.score.weight)
    again = ppo(value=ValueConfig(shared_trunk=shared, warmup_iterations=1), optimizer=OptimizerConfig(lr=1e-2))
    fit(again, max_epochs=2)
    assert not torch.equal(again.network.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_accumulation_gives_the_weights_of_one_big_batch():
    one, two = ppo(), ppo()
    fit(one, max_epochs=2)
    fit(two, max_epochs=2, accumulate_grad_batches=2)
    for a, b in zip(one.trained(), two.trained(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_value_model_has_its_own_learning_rate():
    stage = ppo(value=ValueConfig(lr_factor=3.0))
    groups = fit(stage, max_epochs=1).optimizers[0].param_groups
    assert [round(group["lr"] / 1e-3, 6) for group in groups] == [1, 1, 3, 3]
    assert sum(len(group["params"]) for group in groups) == len(list(stage.trained()))


def test_bfloat16_products_pass_the_first_minibatch():
    stage = ppo()
    fit(stage, precision="bf16-mixed", max_epochs=2)
    assert {p.dtype for p in stage.trained()} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KLConfig(kl_in="loss", estimator=K1()).estimators("reward"), "kl.estimator.*K1.*loss"),
        (lambda: KLConfig(kl_target=1.0, kl_coef=0.0).controller(), r"initial\D*0"),
        (lambda: ppo(kl=KLConfig(estimator=K3())), "kl.estimator.*K3.*reward"),
        (
            lambda: ppo(estimator=RLOO(), rollout={"group_size": 2}, value=ValueConfig()),
            "value.*RLOO",
        ),
        (lambda: RolloutConfig(dtype="float16"), r"rollout\.dtype.*float16.*bfloat16"),
        (lambda: RolloutConfig(importance_cap=0.5), r"rollout\.importance_cap.*0\.5.*1"),
        (lambda: ValueConfig(shared_trunk=True, init_from="x"), r"value\.init_from.*value\.shared_trunk"),
        (lambda: PPO(), "PPO.*init_from"),
    ],
)
def test_impossible_settings(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_trainer_may_not_truncate_an_iteration():
    with pytest.raises(ValueError, match=r"trainer\.limit_train_batches\D*2\b.*update\.epochs"):
        fit(ppo(), limit_train_batches=2)
