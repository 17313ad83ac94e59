"""A reward-model directory as a reward: of ids and of texts, normalised, and what is refused."""

import pytest
import torch

from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.rewards import reward_model as module
from align.rewards.functions import load_reward
from align.rewards.length import Length
from align.rewards.reward_model import RewardModel, models_in
from align.rewards.weighted_sum import Part, WeightedSum
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(vocab_size=263, layers=2, heads=2, width=16, ff_width=16, context=40, init_std=0.3)
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ab?"}]


@pytest.fixture(scope="module")
def tokenizer():
    """No merges: a byte is a token."""
    return train_tokenizer(["ab ab"], vocab_size=256 + 7)


def written(network, directory, tokenizer, **extras):
    tokenizer.save(directory)
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    if extras:
        write_manifest(directory, {"stage": "reward"} | extras)
    return directory


@pytest.fixture
def network():
    return ScalarGPT(CONFIG).eval()


def raw(network, ids: list[int]) -> float:
    """One row, unbatched, through all of the network."""
    with torch.no_grad():
        return network.scores(network.hidden(torch.tensor([ids])))[0, -1].item()


def test_texts_are_scored_as_preference_data_renders_them(tmp_path, network, tokenizer):
    """(raw - 3) / 0.5 of prompt, response and the end of the turn; a text prompt is what the user says."""
    reward = load_reward(str(written(network, tmp_path, tokenizer, reward_mean=3.0, reward_std=0.5)))
    asked = [tokenizer.render_chat(prompt, add_generation_prompt=True).ids for prompt in (CHAT, CHAT[1:])]
    rows = [
        [*ids, *tokenizer.encode(text), tokenizer.end_of_turn_id] for ids, text in zip(asked, ["", "ba"], strict=True)
    ]
    expected = [(raw(network, row) - 3.0) / 0.5 for row in rows]
    assert reward([CHAT, "ab?"], ["", "ba"]) == pytest.approx(expected, abs=1e-5)
    assert reward(["ab?"], ["ba"]) == pytest.approx(expected[1:], abs=1e-5)
    assert reward([], []) == []


def test_ids_are_scored_in_any_order_and_in_batches(tmp_path, network, tokenizer, monkeypatch):
    """Batches of at most 64 places hold from 3 rows of 20 down; rows of 0 tokens get 0; padding may be anything."""
    reward = RewardModel("mine", network, tokenizer, mean=0.25, std=2.0)
    lengths = torch.tensor([3, 20, 0, 7, 20, 1, 12, 20, 20, 2])
    ids = torch.randint(256, (10, 25), generator=torch.Generator().manual_seed(0))
    once = reward.score_ids(ids, lengths)
    shapes = []
    monkeypatch.setattr(module, "_BATCH_TOKENS", 64)
    original = network.last_scores
    monkeypatch.setattr(
        network, "last_scores", lambda rows, count: shapes.append(tuple(rows.shape)) or original(rows, count)
    )
    again = reward.score_ids(ids, lengths)
    assert shapes == [(3, 20), (3, 20), (3, 3)]
    expected = [(raw(network, row[:n].tolist()) - 0.25) / 2 if n else 0.0 for row, n in zip(ids, lengths, strict=True)]
    assert once.tolist() == pytest.approx(expected, abs=1e-5)
    assert again.tolist() == pytest.approx(expected, abs=1e-5)
    assert (once.dtype, once.requires_grad) == (torch.float32, False)
    assert reward.score_ids(ids[:1], lengths[:1]).tolist() == pytest.approx(expected[:1], abs=1e-5)


def test_autocast_rounds_nothing(network, tokenizer):
    reward = RewardModel("mine", network, tokenizer)
    ids, lengths = torch.randint(256, (4, 12), generator=torch.Generator().manual_seed(0)), torch.tensor([12, 3, 5, 9])
    plain = reward.score_ids(ids, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward.score_ids(ids, lengths), plain)


def test_the_network_is_frozen(network, tokenizer):
    reward = RewardModel("mine", network.train(), tokenizer)
    assert not reward.network.training
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())


def test_what_is_too_long_is_cut_as_in_training(network, tokenizer):
    """40 tokens: bos, the end of the prompt with the assistant's header, the whole response of 9 and its end."""
    reward = RewardModel("mine", network, tokenizer)
    ids = reward.encode("q" * 100, "r" * 9)
    assert len(ids) == 40
    assert tokenizer.decode(ids, skip_special=False) == f"<|bos|>{'q' * 27}<|end|><|assistant|>{'r' * 9}<|end|>"
    ids = reward.encode("q" * 100, "r" * 100)
    assert tokenizer.decode(ids, skip_special=False) == f"<|bos|><|assistant|>{'r' * 38}"
    assert len(reward(["q" * 100], ["r" * 100])) == 1


def test_another_tokenizer_is_refused(network, tokenizer):
    reward = RewardModel("mine", network, tokenizer)
    reward.check_tokenizer(tokenizer)
    other = train_tokenizer(["cd cd"], vocab_size=256 + 8)
    with pytest.raises(ValueError, match=f"'mine'.*{tokenizer.fingerprint[:12]}"):
        reward.check_tokenizer(other)


def test_a_language_model_is_no_reward(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="LlamaForCausalLM") as error:
        load_reward(written(GPT(CONFIG), tmp_path, tokenizer))
    assert "\n" not in str(error.value)


def test_without_a_manifest_scores_are_raw(tmp_path, network, tokenizer):
    reward = load_reward(written(network, tmp_path, tokenizer))
    assert (reward.mean, reward.std) == (0.0, 1.0)


def test_a_spread_of_zero_is_refused(tmp_path, network, tokenizer):
    with pytest.raises(ValueError, match=r"reward_mean.*1\.0.*reward_std.*0\.0"):
        load_reward(written(network, tmp_path, tokenizer, reward_mean=1.0, reward_std=0.0))


def test_a_network_that_diverged_is_named(network, tokenizer):
    network.score.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'mine'.*nan.*\b0\b.*\b1\b.*'ba'"):
        RewardModel("mine", network, tokenizer)(["ab?"], ["ba"])


def test_a_reward_model_as_a_part_of_a_sum(tmp_path, network, tokenizer):
    """Named without its weights, loaded once, and found where networks are moved."""
    directory = str(written(network, tmp_path, tokenizer, reward_mean=3.0, reward_std=0.5))
    summed = WeightedSum({"model": Part(directory, 2.0), "length": Part(Length(most=1))})
    assert summed.columns == ()
    reward = load_reward(summed)
    (model,) = models_in(reward)
    assert models_in(reward) == models_in(model) == (model,)
    assert models_in(Length(most=1)) == ()
    score = model(["ab?"], ["b a"])[0]
    assert reward(["ab?"], ["b a"]) == [2 * score]
    assert reward(["ab?"], ["b"])[0] == pytest.approx(2 * model(["ab?"], ["b"])[0] + 1)
