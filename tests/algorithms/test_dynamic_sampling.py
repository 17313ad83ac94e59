"""Groups of equal scores are replaced, in an iteration and across a resume."""

from pathlib import Path

import pytest
import torch
from naming import naming
from ppo_parts import Logged, fit, ppo
from test_ppo_resume import assert_same, saving, weights

from align.algorithms.dynamic_sampling import Draw, differing, first_groups, joined
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig
from align.algorithms.rollout import Responses
from align.algorithms.scoring import Scores, score
from align.engines import ours as ours_module
from align.objectives import GRPO


def draw(scores, length=2):
    """Responses whose ids are their number: one prompt token and ``length`` of the response, in the first one."""
    count = len(scores)
    mask = torch.ones(count, length, dtype=torch.bool)
    mask[0, 1:] = False
    numbers = torch.arange(float(count))
    responses = Responses(
        ids=numbers.long()[:, None].expand(-1, 1 + length).clone(),
        prompt_lengths=[1] * count,
        lengths=[2] + [1 + length] * (count - 1),
        mask=mask,
        logprobs=numbers[:, None].expand(-1, length) * mask,
        finished=numbers > 0,
        prompts=[f"p{i}" for i in range(count)],
        columns=[{"i": i} for i in range(count)],
        texts=[f"t{i}" for i in range(count)],
    )
    tensor = torch.tensor(scores)
    return Draw(responses, Scores(tensor + 10, tensor, None, {"part": tensor + 20}))


def test_the_first_groups_whose_scores_differ_are_kept_in_their_order():
    """Groups (0, 0), (1, 0), (2, 2), (0, 3): the second and the last; of three, the first of the others too."""
    whole = draw([0.0, 0, 1, 0, 2, 2, 0, 3])
    assert differing(whole.scores.scores, 2).tolist() == [False, True, False, True]
    kept = first_groups(whole, 2, 2)
    assert kept.responses.texts == ["t2", "t3", "t6", "t7"]
    assert kept.responses.prompts == ["p2", "p3", "p6", "p7"]
    assert kept.responses.ids[:, 0].tolist() == [2, 3, 6, 7]
    assert kept.scores.scores.tolist() == [1, 0, 0, 3]
    assert kept.scores.rewards.tolist() == [11, 10, 10, 13]
    assert kept.scores.parts["part"].tolist() == [21, 20, 20, 23]
    assert kept.scores.gold is None
    assert first_groups(whole, 3, 2).responses.texts == ["t0", "t1", "t2", "t3", "t6", "t7"]


def test_padding_follows_the_longest_response_that_is_kept():
    short, long = draw([1.0, 0.0], length=2), draw([1.0, 1.0], length=5)
    both = joined([short, long])
    assert both.scores.parts["part"].tolist() == [21, 20, 21, 21]
    assert both.responses.ids.shape == (4, 6)
    assert both.responses.mask.sum(1).tolist() == [1, 2, 1, 5]
    assert both.responses.lengths == [2, 3, 2, 6]
    kept = first_groups(both, 1, 2)
    assert kept.responses.ids.shape == (2, 3)
    assert torch.equal(kept.responses.mask, short.responses.mask)
    assert torch.equal(kept.responses.logprobs, short.responses.logprobs)


def even(prompts, responses):
    """1 for the prompts 0, 2, 4, ...; for the others the number of characters."""
    numbers = [int(prompt.split()[1]) for prompt in prompts]
    return [1.0 if n % 2 == 0 else float(len(r)) for n, r in zip(numbers, responses, strict=True)]


def dapo(**settings):
    return ppo(
        **{
            "reward": "test_dynamic_sampling:even",
            "estimator": GRPO(),
            "kl": KLConfig(kl_coef=0.1),
            "scoring": ScoringConfig(missing_eos_penalty=0.0),
            "rollout": {"group_size": 2, "refills": 4},
        }
        | settings
    )


def test_refills_replace_groups_of_equal_scores():
    """Half of the eight prompts have equal scores, so four groups take at least two draws of four prompts."""
    logged, plain = Logged(), Logged()
    stage = dapo()
    fit(stage, max_epochs=2, callbacks=[logged])
    scores = stage._loader.rollout.scores.view(4, 2)
    assert (scores[:, 0] != scores[:, 1]).all()
    assert all(2 <= row["rollout/draws"] <= 5 for row in logged.rows)
    assert stage.work["samples"] == sum(8 * row["rollout/draws"] for row in logged.rows)
    fit(dapo(rollout={"group_size": 2}), max_epochs=2, callbacks=[plain])
    assert "rollout/draws" not in plain.rows[0]


def test_too_few_refills_leave_groups_of_equal_scores():
    stage = dapo(rollout={"group_size": 2, "refills": 1}, reward="test_dynamic_sampling:constant")
    logged = Logged()
    fit(stage, max_epochs=1, callbacks=[logged])
    assert logged.rows[0]["rollout/draws"] == 2
    assert logged.rows[0]["rollout/equal_groups"] == 1
    assert stage._loader.rollout.scores.shape == (8,)


def constant(prompts, responses):
    return [0.7] * len(responses)


def test_resumed_after_every_step_in_the_same_bits(tmp_path: Path):
    """The prompts that a draw took, and the numbers of repeated prompts, are those of the uninterrupted run."""
    whole = Logged()
    stage = dapo()
    trainer = fit(stage, max_epochs=2, callbacks=[whole, saving(tmp_path)], enable_checkpointing=True)
    for checkpoint in sorted(tmp_path.glob("*.ckpt"))[:-1]:
        logged, resumed = Logged(), dapo()
        again = fit(resumed, max_epochs=2, callbacks=[logged], ckpt_path=str(checkpoint))
        assert again.global_step == trainer.global_step
        assert_same(resumed, weights(stage), logged, whole)


def test_a_repeated_prompt_of_an_iteration_gets_other_responses(monkeypatch):
    """Ten draws of four from eight prompts repeat each prompt; no two of its responses have one seed."""
    used, plain = [], ours_module.sample_responses

    def keep(*args, **kwargs):
        used.extend(kwargs["seeds"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(ours_module, "sample_responses", keep)
    fit(dapo(rollout={"group_size": 2, "refills": 9}, reward="test_dynamic_sampling:constant"), max_epochs=1)
    assert len(used) == len(set(used)) == 80


def test_soft_overlong_punishment_by_hand():
    """At most 10 tokens, the last 4 in the soft limit: 6 tokens lose nothing, 8 half, 10 all of 2."""
    lengths, rewards = torch.tensor([3, 6, 8, 10]), torch.ones(4)
    config = ScoringConfig(overlong_tokens=4, overlong_penalty=2.0, missing_eos_penalty=0.5)
    finished = torch.tensor([True, True, True, False])
    assert score(rewards, finished, lengths, config, longest=10).tolist() == [1, 1, 0, -1.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RolloutConfig(refills=-1, group_size=2), naming("rollout.refills", -1)),
        (lambda: RolloutConfig(refills=1), naming("rollout.refills", 1, "rollout.group_size", 1)),
        (lambda: ScoringConfig(overlong_tokens=-1), naming("scoring.overlong_tokens", -1)),
        (lambda: ScoringConfig(overlong_penalty=-1.0), naming("scoring.overlong_penalty", -1.0)),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
