"""A reward that reads the context sees the same prompt wherever it scores."""

import json
from pathlib import Path

import pytest
from dpo_pairs import World
from ppo_parts import Recorder, fit

from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import RolloutConfig, UpdateConfig
from align.cli import main
from align.data.pair_data import PreferenceData, PromptData
from align.objectives import RLOO
from align.tokenizer import Tokenizer

CHAT = [{"role": "system", "content": "bad"}, {"role": "user", "content": "cab"}]
PROMPTS = ["ab", [{"role": "user", "content": "dad"}], CHAT]


def seen() -> set[str]:
    """The distinct prompts since the last call, as JSON."""
    found = {json.dumps(prompt) for prompt in Recorder.seen}
    Recorder.seen.clear()
    return found


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    Tokenizer.load(tmp_path / "tokenizer").save(Path(world.start))
    return world


def test_the_prompt_is_the_same_in_ppo_policy_evaluation_and_preferences(world, tmp_path):
    """A text; a single user message, which is its text; and a chat, which is its messages."""
    expected = {json.dumps("ab"), json.dumps("dad"), json.dumps(CHAT)}
    file = write(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    settings = {"validation": file, "context": 40, "batch_size": 3, "cache_dir": tmp_path / "cache"}
    data = PromptData(str(tmp_path / "tokenizer"), file, **settings)

    def stage(prompts: int) -> PPO:
        return PPO(
            world.start,
            Recorder(),
            estimator=RLOO(),
            rollout=RolloutConfig(episodes=6, group_size=2, max_new_tokens=3),
            update=UpdateConfig(epochs=1, minibatches=1),
            policy_evaluation=PolicyEvaluationConfig(
                prompts=prompts, max_new_tokens=3, judge="ppo_parts.Recorder" if prompts else None
            ),
        )

    seen()
    fit(stage(0), data=data, max_epochs=1)
    assert seen() == expected
    evaluation = stage(3)
    evaluation.reward_name = "ppo_parts:share"
    fit(evaluation, data=data, max_epochs=1, limit_val_batches=1.0)
    assert seen() == expected

    command = ["preferences", world.start, "--prompts", file, "--judge", "ppo_parts.Recorder"]
    command += ["--out", str(tmp_path / "pairs.jsonl"), "--n", "2", "--max-new-tokens", "3", "--keep-unfinished"]
    assert main(command) == 0
    assert seen() == expected


def test_pairs_keep_their_prompts(world, tmp_path):
    """What DPO's policy evaluation and the reward stage hand to a judge."""
    pairs = [{"prompt": prompt, "chosen": "ab", "rejected": "cab"} for prompt in PROMPTS[::2]]
    train = write(tmp_path / "pairs.jsonl", pairs)
    data = PreferenceData(str(tmp_path / "tokenizer"), train, context=40, batch_size=2, cache_dir=tmp_path / "cache")
    data.setup("fit")
    (batch,) = data.record_loader("train")
    assert batch.prompts == ("ab", CHAT)
