"""Sampling episodes of several turns: the model's turns are sampled, its environment's are read.

Legend: B episodes, T tokens of the longest row, N tokens of the longest episode without its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo_settings import RolloutConfig, ScoringConfig
from align.algorithms.rollout import Responses, RolloutPrompt, sampling_of
from align.engines import Asked, OpenEngine, Ours, Weights
from align.engines.engine import OnProgress
from align.environments import Environment, Step
from align.generation.sampling import response_seed
from align.model.gpt import GPT
from align.rewards.reward import LARGEST_SCORE, Reward
from align.tokenizer.turns import turn_ids
from align.training.sharding import gathered


def check_environment(
    environment: Environment | None,
    reward: str | Reward | None,
    scoring: ScoringConfig,
    evaluation: PolicyEvaluationConfig,
) -> None:
    """Refuse settings that mean nothing in episodes of several turns.

    Raises:
        ValueError: there is such a setting.
    """
    if environment is None:
        return
    if reward is not None:
        raise ValueError("reward and environment are both set: the environment rewards its episodes; remove reward")
    if scoring.normalise != "none" or scoring.reward_clip is not None:
        raise ValueError(
            "scoring.normalise or scoring.reward_clip is set, but an environment's rewards belong to single turns: "
            "scale them in the environment"
        )
    if evaluation.judge is not None:
        raise ValueError("policy_evaluation.judge is set, but the environment is the judge of its episodes: remove it")


@dataclass
class _Episode:
    """An episode so far.

    Attributes:
        prompt: what it starts from.
        sample: number among the episodes of its prompt.
        state: of the environment.
        ids: after the prompt.
        own: for each id, whether the model sampled it.
        logprobs: for each id, the sampler's; 0 where the environment wrote it.
        rewards: for each id.
        texts: of the model's turns.
        finished: whether it ended as the environment or the turn limit wanted, not for lack of tokens.
        over: whether it has ended.
    """

    prompt: RolloutPrompt
    sample: int
    state: Any
    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finished: bool = False
    over: bool = False

    @property
    def row(self) -> list[int]:
        return [*self.prompt.ids, *self.ids]

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Add a turn; the environment's has no log-probs."""
        self.ids += ids
        self.own += [logprobs is not None] * len(ids)
        self.logprobs += logprobs or [0.0] * len(ids)
        self.rewards += [0.0] * len(ids)


def sample_episodes(
    policy: GPT,
    prompts: Sequence[RolloutPrompt],
    environment: Environment,
    config: RolloutConfig,
    *,
    tokenizer: Any,
    seed: int,
    iteration: int,
    earlier: Sequence[int],
    engine: OpenEngine | None = None,
    version: str = "",
    on_progress: OnProgress | None = None,
) -> Responses:
    """Play ``group_size`` episodes from each prompt, all of them turn by turn in one batch.

    An episode ends when the environment says so, after ``environment.max_turns`` turns, or, unfinished, when a turn
    reaches ``max_new_tokens`` or the next one has no room in the context.

    Args:
        policy: samples over the whole vocabulary.
        prompts: those of an episode; neighbours share one.
        environment: answers each turn.
        config: temperature, tokens of a turn, precision.
        tokenizer: decodes, renders the environment's messages, and knows which tokens end a turn.
        seed: of the run.
        iteration: of the run.
        earlier: for each prompt, how often it occurs before in the iteration, over all ranks.
        engine: samples; None: our own.
        version: of the policy's weights; differs whenever they do.
        on_progress: called now and then with the share of the turn that is done; an exception from it ends the
            sampling.

    Returns:
        Responses: ``mask`` is True on the model's tokens alone, ``rewards`` are the environment's.

    Raises:
        ValueError: the environment failed, or the chat template can't continue a chat.
    """
    episodes = [
        _Episode(prompt, count * config.group_size + k, environment.reset(prompt.content, prompt.columns))
        for prompt, count in zip(prompts, earlier, strict=True)
        for k in range(config.group_size)
    ]
    engine = engine or Ours().open(tokenizer)
    with gathered(policy) as whole:
        for turn in range(environment.max_turns):
            active = [episode for episode in episodes if not episode.over]
            if not active:
                break
            asked = Asked(
                [episode.row for episode in active],
                sampling_of(config),
                [response_seed(seed, iteration, one.prompt.number, one.sample, turn) for one in active],
            )
            sampled = engine.sample(Weights(whole, version), asked, on_progress)
            for index, episode in enumerate(active):
                ids = sampled.ids[index]
                episode.append(ids, sampled.samples.logprobs[index, : len(ids)].tolist())
                episode.texts.append(sampled.texts[index])
                step = _answer(environment, episode)
                episode.rewards[-1] += step.reward
                episode.state = step.state
                last = turn == environment.max_turns - 1
                _continue(episode, step, tokenizer, policy.config.context, ended=sampled.finished[index], last=last)
    return _responses(episodes, tokenizer.pad_id or 0, policy.output_weight.device)


def _answer(environment: Environment, episode: _Episode) -> Step:
    """What the environment says to the latest turn.

    Raises:
        ValueError: it raised, or returned no finite reward.
    """
    name, text = type(environment).__name__, episode.texts[-1]
    turn = f"on the turn {text[:60]!r}"
    try:
        step = environment.step(episode.state, text)
    except Exception as error:
        raise ValueError(f"environment {name} raised {type(error).__name__}: {error} {turn}") from error
    if not isinstance(step, Step):
        raise ValueError(f"environment {name} returned a {type(step).__name__} {turn}: it must be a Step")
    if not abs(step.reward) <= LARGEST_SCORE:
        raise ValueError(f"environment {name} gave the reward {step.reward} {turn}: it must be finite")
    return step


def _continue(episode: _Episode, step: Step, tokenizer: Any, context: int, *, ended: bool, last: bool) -> None:
    """End the episode, or append the environment's message."""
    episode.over = step.done or last or not ended
    episode.finished = ended and (step.done or last)
    if episode.over:
        return
    message = turn_ids(tokenizer, {"role": step.role, "content": step.observation})
    if len(episode.row) + len(message) >= context:
        episode.over = True
        return
    episode.append(message, None)


def _responses(episodes: Sequence[_Episode], pad: int, device: torch.device) -> Responses:
    rows = [episode.row for episode in episodes]
    width, longest = max(map(len, rows)), max(len(episode.ids) for episode in episodes)

    def padded(values: Sequence[Sequence[Any]], fill: Any, size: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (size - len(row))] for row in values], device=device)

    return Responses(
        ids=padded(rows, pad, width),
        prompt_lengths=[len(episode.prompt.ids) for episode in episodes],
        lengths=[len(row) for row in rows],
        mask=padded([episode.own for episode in episodes], False, longest),
        logprobs=padded([episode.logprobs for episode in episodes], 0.0, longest),
        finished=torch.tensor([episode.finished for episode in episodes], device=device),
        prompts=[episode.prompt.content for episode in episodes],
        columns=[episode.prompt.columns for episode in episodes],
        texts=["\n".join(episode.texts) for episode in episodes],
        rewards=padded([episode.rewards for episode in episodes], 0.0, longest),
    )
