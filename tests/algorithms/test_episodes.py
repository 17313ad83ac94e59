"""Episodes of several turns: who wrote which token, what is trained, and that a policy learns to use an observation."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming
from ppo_parts import CONFIG, EOS, Logged, Tokens, fit, plain_logprobs, policy, ppo
from test_ppo import BANDIT
from test_ppo_resume import assert_same, saving, weights

from align.algorithms import episodes as module
from align.algorithms.episodes import sample_episodes
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig
from align.algorithms.rollout import RolloutPrompt
from align.algorithms.scoring import turns
from align.environments import Environment, Step
from align.objectives import GAE, GRPO, ScoredResponses, gae
from align.training.optimization import OptimizerConfig

SAID = (9, 10)
"""What the environment of these tests writes between two turns"""


@pytest.fixture(autouse=True)
def plain_turns(monkeypatch):
    """A message between two turns is the ids that its content names."""
    monkeypatch.setattr(module, "turn_ids", lambda tokenizer, message: [int(x) for x in message["content"].split()])


@dataclass(frozen=True)
class Count(Environment):
    """Each turn is worth its number of tokens; the episode ends after three turns."""

    max_turns: int = 3

    def reset(self, prompt, record):
        return 0

    def step(self, state, response):
        words = response.split()
        return Step(reward=float(len(words)), observation=" ".join(map(str, SAID)), state=state + 1)


def play(environment, *, network=None, prompts=((3, 4), (5,)), tokens=3, group_size=1, seed=0):
    given_prompts = [RolloutPrompt(list(ids), number, f"p{number}", {}) for number, ids in enumerate(prompts)]
    config = RolloutConfig(episodes=len(prompts) * group_size, group_size=group_size, max_new_tokens=tokens)
    return sample_episodes(
        network or policy(), given_prompts, environment, config,
        tokenizer=Tokens(), seed=seed, iteration=0, earlier=[0] * len(prompts),
    )  # fmt: skip


def ends_turns(seed=0):
    """A policy that often ends its turns."""
    made = policy(seed)
    with torch.no_grad():
        made.model.embed_tokens.weight[EOS] += 0.6 * made.model.norm.weight.sign()
    return made


@pytest.mark.parametrize("group_size", [1, 2])
def test_the_transcript_alternates_and_its_mask_is_the_models(group_size):
    """Between two turns are exactly the environment's ids, with no log-prob and no reward."""
    played = play(Count(), network=ends_turns(), prompts=[(3, 4)] * 1 + [(5,)] * 5, group_size=group_size, tokens=5)
    assert max(turns(played.mask).tolist()) == 3
    for b, prompt in enumerate(played.prompt_lengths):
        region = played.ids[b, prompt : played.lengths[b]].tolist()
        own = played.mask[b, : len(region)].tolist()
        runs, start = [], 0
        for index in range(1, len(region) + 1):
            if index == len(region) or own[index] != own[start]:
                runs.append((own[start], region[start:index]))
                start = index
        assert [mine for mine, _ in runs] == [True, False] * (len(runs) // 2) + [True]
        for mine, ids in runs:
            assert mine or tuple(ids) == SAID
            assert not mine or EOS not in ids[:-1]
        assert all(ids[-1] == EOS for mine, ids in runs[:-1] if mine)
        given_at = played.rewards[b, : len(region)].nonzero()[:, 0].tolist()
        assert given_at == [i for i in range(len(region)) if own[i] and (i + 1 == len(region) or not own[i + 1])]
        lengths = [len(ids) for mine, ids in runs if mine]
        assert [played.rewards[b, i].item() for i in given_at] == lengths
        assert bool(played.finished[b]) == (len(lengths) == 3 and region[-1] == EOS)
        assert not played.logprobs[b][~played.mask[b]].any()


def test_log_probs_are_those_of_the_whole_transcript():
    network = ends_turns()
    played = play(Count(), network=network, tokens=5)
    for b, prompt in enumerate(played.prompt_lengths):
        row = played.ids[b, : played.lengths[b]]
        expected = plain_logprobs(network, row, prompt)
        own = played.mask[b, : len(expected)]
        torch.testing.assert_close(played.logprobs[b, : len(expected)][own], expected[own], rtol=1e-4, atol=1e-5)


def test_an_episode_does_not_depend_on_the_others():
    together = play(Count(), network=ends_turns(), prompts=[(3, 4), (5,), (6, 7)], tokens=4)
    alone = play(Count(), network=ends_turns(), prompts=[(3, 4)], tokens=4)
    assert together.ids[0, : together.lengths[0]].tolist() == alone.ids[0, : alone.lengths[0]].tolist()


def test_an_episode_ends_where_the_context_does():
    """A context of 24 and messages of 10 tokens: never more than 24 tokens, unfinished."""

    class Long(Count):
        def step(self, state, response):
            return Step(observation=" ".join(["9"] * 10), state=state)

    played = play(Long(max_turns=9), network=ends_turns(), tokens=2, prompts=[(3,)] * 4)
    assert max(played.lengths) <= CONFIG.context
    assert not played.finished.any()


@dataclass(frozen=True)
class Repeat(Environment):
    """The second turn is worth the share of the token that the environment said: which one depends on the prompt."""

    max_turns: int = 2

    def reset(self, prompt, record):
        return (0, 5 + int(prompt.split()[1]) % 2)

    def step(self, state, response):
        turn, wanted = state
        words = response.split()
        if turn == 0:
            return Step(observation=f"{wanted}", state=(1, wanted))
        return Step(reward=words.count(str(wanted)) / max(1, len(words)), done=True)


def test_a_policy_learns_to_say_what_it_was_told():
    """No fixed token earns more than about a half, so it has to read the observation."""
    evaluated = []

    class Watched(Logged):
        def on_validation_end(self, trainer, stage):
            evaluated.append({name: float(trainer.callback_metrics[f"policy/{name}"]) for name in ("reward", "turns")})

    rollout = {"episodes": 64, "group_size": 8, "max_new_tokens": 4}
    evaluation = PolicyEvaluationConfig(prompts=8, max_new_tokens=4)
    stage = ppo(
        **BANDIT | {"reward": None, "environment": Repeat(), "rollout": rollout, "policy_evaluation": evaluation}
        | {"optimizer": OptimizerConfig(lr=1e-2, weight_decay=0.0), "estimator": GRPO()},
        network=ends_turns(), update={"target_kl": None, "epochs": 4, "minibatches": 2},
    )  # fmt: skip
    logged = Watched()
    fit(stage, max_epochs=16, callbacks=[logged], limit_val_batches=1.0, check_val_every_n_epoch=16)
    first, last = logged.rows[0]["rollout/reward"], logged.rows[-1]["rollout/reward"]
    assert first < 0.2
    assert last > 0.6
    assert evaluated[-1]["reward"] > 0.5
    assert 1 <= logged.rows[-1]["rollout/turns"] <= 2


def test_what_the_environment_wrote_has_no_gradient_of_its_own(monkeypatch):
    """The policy loss of a step, recomputed from whole logits over the model's tokens."""
    seen = []

    class Keep(Logged):
        def on_train_batch_start(self, trainer, stage, batch, batch_idx):
            seen.append((batch, stage._loader.rollout))

    rollout = {"episodes": 8, "group_size": 2, "max_new_tokens": 4}
    settings = {"estimator": GRPO(), "kl": KLConfig(kl_coef=0.0), "scoring": ScoringConfig(missing_eos_penalty=0.0)}
    stage = ppo(
        network=ends_turns(), reward=None, environment=Count(), rollout=rollout,
        update={"epochs": 1, "minibatches": 1}, **settings,
    )  # fmt: skip
    fit(stage, max_steps=1, callbacks=[Keep()])
    batch, rollout = seen[0]
    assert batch.chosen is not None
    assert int(batch.counts.sum()) == batch.targets.numel() == int(rollout.mask.sum())
    fresh = ends_turns()
    targets, old = [], []
    for ids, prompt, length in zip(batch.ids, batch.prompt_lengths, batch.lengths, strict=True):
        row = ids[:length]
        match = next(b for b in range(len(rollout.ids)) if rollout.ids[b, : len(row)].equal(row))
        own = rollout.mask[match, : length - prompt]
        targets.append(row[prompt:][own])
        old.append(plain_logprobs(fresh, row, prompt)[own])
    assert torch.equal(torch.cat(targets), batch.targets)
    torch.testing.assert_close(torch.cat(old), batch.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [GRPO(), GAE()], ids=["grpo", "ppo"])
def test_resumed_after_every_step_in_the_same_bits(tmp_path: Path, estimator):
    def make():
        rollout = {"episodes": 8, "group_size": 2, "max_new_tokens": 4}
        return ppo(network=ends_turns(), reward=None, environment=Count(), estimator=estimator, rollout=rollout)

    whole = Logged()
    stage = make()
    fit(stage, max_epochs=2, callbacks=[whole, saving(tmp_path)], enable_checkpointing=True)
    for checkpoint in sorted(tmp_path.glob("*.ckpt"))[1:-1:3]:
        logged, resumed = Logged(), make()
        fit(resumed, max_epochs=2, callbacks=[logged], ckpt_path=str(checkpoint))
        assert_same(resumed, weights(stage), logged, whole)


def test_turn_rewards_by_hand():
    """Turns of 2 and 1 tokens with one of the environment between, rewards 3 and 5, score 7 (a penalty of 1)."""
    mask = torch.tensor([[True, True, False, True]])
    given_at = torch.tensor([[0.0, 3.0, 0.0, 5.0]])
    responses = ScoredResponses(torch.tensor([7.0]), torch.zeros(1, 4), torch.zeros(1, 4), mask, 1, given_at)
    assert responses.token_rewards().tolist() == [[0, 3, 0, 4]]
    advantages, returns = gae(responses.token_rewards(), torch.tensor([[1.0, 2.0, 9.0, 3.0]]), mask, gamma=1.0, lam=0.5)
    # Deltas: 0 + 2 - 1, 3 + 3 - 2, 4 - 3; then 1 + (4 + 1/2) / 2, 4 + 1/2, 1.
    assert advantages.tolist() == [[3.25, 4.5, 0, 1]]
    assert returns.tolist() == [[4.25, 6.5, 0, 4]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_gae_over_turns_is_gae_of_the_models_tokens_alone(seed: int):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 8, generator=g, dtype=torch.float64)
    mask = torch.rand(3, 8, generator=g) < 0.6
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for b in range(3):
        own = mask[b]
        alone = gae(rewards[b, own][None], values[b, own][None], torch.ones(1, int(own.sum()), dtype=torch.bool),
                    gamma=0.9, lam=0.8)  # fmt: skip
        torch.testing.assert_close(advantages[b, own], alone[0][0])
        torch.testing.assert_close(returns[b, own], alone[1][0])
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


class Bad(Count):
    def step(self, state, response):
        return {"raises": lambda: 1 / 0, "nan": lambda: Step(reward=float("nan")), "type": lambda: 3}[self.kind]()


@pytest.mark.parametrize(("kind", "words"), [("raises", "ZeroDivisionError"), ("nan", "nan"), ("type", "int")])
def test_a_failing_environment_is_named(kind: str, words: str, monkeypatch):
    monkeypatch.setattr(Bad, "kind", kind, raising=False)
    with pytest.raises(ValueError, match=naming("Bad", words)):
        play(Bad())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "sandbox"}, naming("reward", "environment")),
        ({"scoring": ScoringConfig(reward_clip=1.0)}, naming("scoring.reward_clip", "environment")),
        ({"scoring": ScoringConfig(normalise="running")}, naming("scoring.normalise", "environment")),
        ({"policy_evaluation": PolicyEvaluationConfig(judge="sandbox")}, naming("policy_evaluation.judge")),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ppo(**{"reward": None, "environment": Count()} | settings)
