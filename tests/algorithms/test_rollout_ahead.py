"""Responses sampled one iteration ahead: whose weights sample them, what corrects for it, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from naming import naming
from ppo_parts import Logged, PromptModule, Prompts, Tokens, fit, plain_logprobs, policy, ppo
from ranks import on_two_ranks
from test_ppo_resume import assert_same, everything, saving, weights

from align.algorithms.ppo_settings import RolloutConfig
from align.algorithms.response_source import _responses_of, _rows_of
from align.algorithms.rollout import RolloutPrompt, sample_rollout
from align.engines import Ours
from align.objectives import GRPO
from align.training.optimization import OptimizerConfig

STEPS = 4
"""Optimizer steps of an iteration of ``ppo()``"""


@pytest.fixture
def submitted(monkeypatch):
    """The version, seeds and output matrix of every call of our engine."""
    found: list[tuple[str, list[int], torch.Tensor]] = []
    opened = type(Ours().open(Tokens()))
    plain = opened.submit

    def keep(self, weights, asked, on_progress=None):
        found.append((weights.version, list(asked.seeds), weights.network.output_weight.detach().clone()))
        return plain(self, weights, asked, on_progress)

    monkeypatch.setattr(opened, "submit", keep)
    return found


class Starts(Callback):
    """The output matrix with which each iteration begins to update, and its rollout."""

    def __init__(self):
        self.matrices, self.rollouts = [], []

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if batch.position == 0:
            self.matrices.append(stage.network.output_weight.detach().clone())
            self.rollouts.append((stage._loader.rollout, weights(stage)))


def test_an_iteration_is_sampled_with_the_weights_from_before_the_last_update(submitted):
    starts, logged = Starts(), Logged()
    fit(ppo(rollout={"ahead": 1}), max_epochs=3, callbacks=[starts, logged])
    assert [version for version, _, _ in submitted] == ["0", "0", str(STEPS)]
    for (_, _, sampled_with), begun_with in zip(submitted, [0, 0, 1], strict=True):
        assert torch.equal(sampled_with, starts.matrices[begun_with])
    assert [row["rollout/staleness"] for row in logged.rows] == [0, STEPS, STEPS]


def test_prompts_and_seeds_are_those_of_a_run_that_samples_on_time(submitted):
    """Eight prompts for three iterations of eight responses: repeated prompts are numbered by iteration."""
    seeds = []
    for ahead in (0, 1):
        submitted.clear()
        fit(ppo(rollout={"ahead": ahead}), max_epochs=3)
        seeds.append([of_call for _, of_call, _ in submitted])
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize("settings", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 2 * STEPS}], ids=naming)
def test_nothing_is_sampled_beyond_the_last_iteration(submitted, settings):
    fit(ppo(rollout={"ahead": 1}, update={"target_kl": None}), **settings)
    assert len(submitted) == 2


@pytest.mark.parametrize("cap", [1.5, None])
def test_old_log_probs_and_weights_by_hand(submitted, cap):
    """Old log-probs are the trained policy's; advantages carry its truncated ratio to the policy that sampled."""
    starts = Starts()
    stage = ppo(
        estimator=GRPO(), rollout={"ahead": 1, "group_size": 2, "importance_cap": cap}, 
        optimizer=OptimizerConfig(lr=2e-2, weight_decay=0.0),
        update={"target_kl": None},
    )  # fmt: skip
    fit(stage, max_epochs=2, callbacks=[starts])
    rollout, now = starts.rollouts[1]
    before = starts.rollouts[0][1]
    ratios = []
    for b, (prompt, length) in enumerate(zip(rollout.prompt_lengths, rollout.lengths, strict=True)):
        row, mask = rollout.ids[b, :length], rollout.mask[b]
        new, sampler = (plain_logprobs(_with(state), row, int(prompt)) for state in (now, before))
        assert torch.allclose(rollout.logprobs[b, mask], new, atol=1e-5)
        ratios.append((new - sampler).exp())
    scores = rollout.scores.view(-1, 2)
    plain = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).flatten()
    for b, ratio in enumerate(ratios):
        weight = torch.ones_like(ratio) if cap is None else ratio.clamp(max=cap)
        assert torch.allclose(rollout.advantages[b, rollout.mask[b]], plain[b] * weight, atol=1e-3)
    assert max(ratio.max() for ratio in ratios) > 1.5  # the cap cuts


def _with(state):
    network = policy()
    own = {name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")}
    network.load_state_dict(own)
    return network


@pytest.mark.parametrize("settings", [{}, {"update": {"target_kl": 1e-3}}], ids=["whole", "ended-early"])
def test_resumed_after_every_optimizer_step(tmp_path: Path, settings):
    """What was sampled ahead is in the checkpoint, so the resumed run ends in the same bits."""
    whole = Logged()
    stage = everything(rollout={"ahead": 1}, **settings)
    trainer = fit(stage, max_epochs=3, callbacks=[whole, saving(tmp_path)], enable_checkpointing=True)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == trainer.global_step
    for checkpoint in checkpoints:
        logged, resumed = Logged(), everything(rollout={"ahead": 1}, **settings)
        again = fit(resumed, max_epochs=3, callbacks=[logged], ckpt_path=str(checkpoint))
        assert again.global_step == trainer.global_step
        if again.global_step > torch.load(checkpoint, weights_only=True)["global_step"]:
            assert_same(resumed, weights(stage), logged, whole)


def test_a_failed_iteration_keeps_what_was_sampled_ahead(submitted):
    """The reward fails in the second iteration: its prompts are not taken twice when it is begun again."""
    stage = ppo(rollout={"ahead": 1}, reward="test_rollout_ahead:failing")
    with pytest.raises(ValueError, match="failing"):
        fit(stage, max_epochs=3)
    kept = stage.source.state_dict()
    assert kept["iteration"] == 1
    assert kept["step"] == 0
    assert stage._loader.iteration == 0


def failing(prompts, responses):
    failing.calls += len(responses)
    if failing.calls > 8:
        raise RuntimeError("no")
    return [0.0, 1.0] * (len(responses) // 2)


failing.calls = 0  # pytest's copy of this module is not the one that a reward's name imports


def test_a_record_of_responses_gives_them_back():
    prompts = [RolloutPrompt([2, 3], 0, "a", {"x": [1]}), RolloutPrompt([4], 1, "b", {})]
    config = RolloutConfig(episodes=4, group_size=2, max_new_tokens=6)
    given = sample_rollout(policy(), prompts, config, tokenizer=Tokens(), seed=0, iteration=0)
    for responses in (given, given._replace(rewards=torch.rand(given.mask.shape) * given.mask)):
        back = _responses_of(_rows_of(responses), pad=0, device=torch.device("cpu"))
        for name, value in responses._asdict().items():
            got: Any = getattr(back, name)
            assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value, name


class Strided(Prompts):
    """A rank's share of the prompts, with their numbers among all."""

    def __init__(self, lengths, batch_size, rank, ranks):
        super().__init__(lengths, batch_size)
        self.prompts, self.rank, self.ranks = self.prompts[rank::ranks], rank, ranks

    def __iter__(self):
        for batch in super().__iter__():
            numbers = batch.numbers * self.ranks + self.rank
            names = tuple(f"prompt {number}" for number in numbers.tolist())
            columns = tuple({"number": number} for number in numbers.tolist())
            yield batch._replace(numbers=numbers, prompts=names, columns=columns)


class Sharded(PromptModule):
    def train_dataloader(self):
        prompts = Strided(self.lengths, 2, self.trainer.global_rank, self.trainer.world_size)
        return self.trainer.lightning_module.rollout_loader(prompts)


@pytest.mark.timeout(180)
def test_two_ranks_save_what_both_sampled_ahead(tmp_path: Path):
    """In the middle of an iteration: the responses for the next one are those of a single process, in its order."""

    def work(folder="two", **settings):
        save = saving(tmp_path / folder, every_n_train_steps=2)
        fit(ppo(rollout={"ahead": 1}), callbacks=[save], enable_checkpointing=True, **settings)

    def saved(folder):
        return torch.load(next((tmp_path / folder).glob("*step=2.ckpt")), weights_only=True)["ahead"]

    on_two_ranks(lambda: work(strategy="ddp", devices=2, data=Sharded()), tmp_path / "log")
    work("one")
    assert saved("two")["iteration"] == saved("one")["iteration"] == 1
    fields = ("ids", "prompt", "columns", "mask", "finished", "text")
    one, two = ([{name: row[name] for name in fields} for row in saved(folder)["rows"]] for folder in ("one", "two"))
    assert one == two
    resumed = ppo(rollout={"ahead": 1})
    fit(resumed, ckpt_path=str(next((tmp_path / "two").glob("*step=2.ckpt"))))
    assert resumed._loader.iteration == 1


@pytest.mark.parametrize(
    ("settings", "match"), [({"ahead": 2}, "rollout.ahead"), ({"ahead": 1, "refills": 1, "group_size": 2}, "refills")]
)
def test_invalid_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        RolloutConfig(**settings)
