"""From prompts to micro-batches: each number of an iteration recomputed the long way."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from ppo_parts import Logged, PromptModule, Prompts, Tokens, fit, plain_logprobs, policy, ppo, share

from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig
from align.algorithms.rollout import RolloutPrompt, earlier_occurrences, sample_rollout
from align.algorithms.rollout_buffer import BatchPlan, PromptStream, Rollout, join_ranks
from align.model import response_states as module
from align.model.response_states import chunk_rows, response_states, response_tokens
from align.objectives import GAE
from align.rewards import Reward


class Keeper(Callback):
    """Keeps the first iteration's rollout, and the value model that went into it."""

    rollout = value = None

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if self.rollout is None:
            self.rollout, self.value = stage._loader.rollout, copy.deepcopy(stage.value)


def test_an_iterations_numbers_recomputed_from_its_rollout():
    """Score, KL, token rewards, GAE by its sum of deltas, whitening and returns, row by row in plain Python."""
    kl = KLConfig(kl_coef=0.3)
    other = policy(seed=3)
    stage = ppo(kl=kl, estimator=GAE(gamma=0.97, lam=0.9))
    stage.configure_model()
    stage.reference.load_state_dict(other.state_dict())
    keeper = Keeper()
    with pytest.warns(UserWarning, match=r"reference.*KL.*-?\d"):
        fit(stage, max_steps=1, callbacks=[keeper])
    rollout, value = keeper.rollout, keeper.value
    raw, every = {}, []
    for b in range(len(rollout.ids)):
        p, n = int(rollout.prompt_lengths[b]), int(rollout.lengths[b])
        row, count = rollout.ids[b, :n], n - p
        ours, theirs = plain_logprobs(policy(), row, p), plain_logprobs(other, row, p)
        torch.testing.assert_close(rollout.logprobs[b, :count], ours, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rollout.reference_logprobs[b, :count], theirs, rtol=1e-4, atol=1e-5)
        values = value.scores(value.hidden(row[None])[0])[p - 1 : -1].tolist()
        text = " ".join(map(str, row[p:].tolist()))
        score = share([""], [text])[0] - (0.0 if row[-1] == 1 else 1.0)
        assert rollout.scores[b].item() == pytest.approx(score, abs=1e-6)
        rewards = [-0.3 * float(a - r) for a, r in zip(ours, theirs, strict=True)]
        rewards[-1] += score
        after = [*values[1:], 0.0]
        deltas = [r + 0.97 * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
        raw[b] = [sum((0.97 * 0.9) ** k * d for k, d in enumerate(deltas[t:])) for t in range(count)]
        every += raw[b]
        returns = [a + v for a, v in zip(raw[b], values, strict=True)]
        torch.testing.assert_close(rollout.returns[b, :count], torch.tensor(returns), rtol=1e-3, atol=1e-4)
        assert not rollout.advantages[b, count:].any()
    mean, std = np.mean(every), np.std(every, ddof=1)
    for b, advantages in raw.items():
        expected = torch.tensor([(a - mean) / std for a in advantages], dtype=torch.float32)
        torch.testing.assert_close(rollout.advantages[b, : len(expected)], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("group_size", "line_tokens"), [(1, None), (3, None), (3, 30), (3, 1000)], ids=["rows", "groups", "lines", "line"]
)
def test_response_states_are_the_plain_forwards(group_size: int, line_tokens: int | None, monkeypatch):
    """Chunked by length, after a prompt that is read once, or (off the CPU) in lines of one group or of all."""
    network = policy()
    torch.manual_seed(0)
    prompts = [[3, 4], [5, 6, 7, 8]] if group_size > 1 else [[n + 2] * (n + 1) for n in range(6)]
    rows, prompt_lengths = [], []
    for i, answer in enumerate([1, 4, 2, 5, 1, 9]):
        prompt = prompts[i // group_size]
        rows.append([*prompt, *torch.randint(2, 12, (answer,)).tolist()])
        prompt_lengths.append(len(prompt))
    lengths = [len(row) for row in rows]
    ids = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows])
    if line_tokens is None:
        states = response_states(network, ids, prompt_lengths, lengths, group_size=group_size)
    else:
        monkeypatch.setattr(module, "_MOST_TOKENS_ELSEWHERE", line_tokens)
        forwards, hidden = [], network.hidden
        monkeypatch.setattr(network, "hidden", lambda *args, **kwargs: forwards.append(args) or hidden(*args, **kwargs))
        states = module._chunked_states(network, ids, prompt_lengths, lengths, group_size)
        assert len(forwards) == (2 if line_tokens == 30 else 1)
    plain = [network.hidden(torch.tensor([row]))[0, p - 1 : -1] for row, p in zip(rows, prompt_lengths, strict=True)]
    torch.testing.assert_close(states, torch.cat(plain), rtol=1e-4, atol=1e-5)
    assert response_tokens(ids, prompt_lengths, lengths).tolist() == [
        t for row, p in zip(rows, prompt_lengths, strict=True) for t in row[p:]
    ]
    weights = torch.randn_like(states)
    gradients = [
        torch.autograd.grad((x * weights).sum(), network.model.parameters(), allow_unused=True)
        for x in (states, torch.cat(plain))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 60), st.integers(1, 100))
def test_rows_are_chunked_in_order_and_once(widths: list[int], call: int, most: int):
    widths = sorted(widths, reverse=True)
    chunks = chunk_rows(widths, call_tokens=call, most_tokens=most)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(len(widths)))
    for chunk in chunks:
        rows = chunk.stop - chunk.start
        assert rows == 1 or rows * widths[chunk.start] <= most


def test_free_calls_leave_no_padding_and_dear_ones_one_chunk():
    assert len(chunk_rows([9, 9, 5, 5, 2], call_tokens=0, most_tokens=999)) >= 3
    assert chunk_rows([9, 9, 5, 5, 2], call_tokens=99, most_tokens=999) == [slice(0, 5)]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_every_epoch_of_a_plan_sees_each_response_once(epochs, minibatches, micro, group, seed):
    plan = BatchPlan(12, group, epochs, minibatches, micro)
    lengths = np.arange(12) % 5 + 2
    rows = plan.rows(lengths, seed=seed, iteration=1)
    assert len(rows) == len(plan)
    for epoch in range(epochs):
        part = rows[epoch * minibatches * micro : (epoch + 1) * minibatches * micro]
        assert sorted(row for batch in part for row in batch) == list(range(12))
        for batch in part:
            starts = batch[:: plan.unit]
            assert batch == [s + i for s in starts for i in range(plan.unit)]
            assert all(s % plan.unit == 0 for s in starts)


@given(st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2, 4]), st.sampled_from([2, 3]), st.integers(0, 5))
def test_ranks_share_the_minibatches_of_one_process(minibatches, micro, group, ranks, seed):
    """And what they get of a minibatch differs by a group at most."""
    lengths = np.arange(24) % 7 + 2
    one = BatchPlan(24, group, 2, minibatches, 1).rows(lengths, seed=seed, iteration=3)
    parts = []
    for rank in range(ranks):
        plan = BatchPlan(24, group, 2, minibatches, micro, ranks, rank)
        rows = plan.rows(lengths, seed=seed, iteration=3)
        parts.append([sum(rows[start : start + micro], []) for start in range(0, len(rows), micro)])
    if plan.unit == group:
        for whole, *shares in zip(one, *parts, strict=True):
            assert sorted(row for share in shares for row in share) == sorted(whole)
            assert max(map(len, shares)) - min(map(len, shares)) <= group


def test_a_plan_with_more_batches_than_responses_is_refused():
    with pytest.raises(ValueError, match=r"\b4\b.*minibatches\D*3\b.*batches\D*2\b.*ranks\D*1\b.*episodes\D*6\b"):
        BatchPlan(4, 1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"\b8\b.*ranks\D*4\b.*episodes\D*16\b"):
        BatchPlan(8, 2, 1, 2, 2, ranks=4)
    with pytest.raises(ValueError, match=r"rollout\.episodes\D*8\b.*\b3\b.*\b2\b.*\b6\b"):
        BatchPlan(8, 2, 1, 1, 1, ranks=3)


def test_a_joined_rollout_has_the_order_of_one_process():
    """Groups 0..3 of two responses on two ranks; response n has n + 1 tokens after a prompt of n."""

    def rollout(rows):
        longest = max(rows) + 1
        mask = torch.arange(longest) < torch.tensor(rows)[:, None] + 1
        per_token = torch.where(mask, torch.tensor(rows)[:, None].float(), 0.0)
        ids = torch.tensor([[n] * (2 * n + 1) + [0] * (2 * (longest - 1 - n)) for n in rows])
        lengths = torch.tensor(rows)
        return Rollout(ids, lengths, 2 * lengths + 1, mask, *[per_token] * 5, lengths.float(), kl_coef=0.5)

    ranks = [rollout([0, 1, 4, 5]), rollout([2, 3, 6, 7])]
    fields = iter([None, *Rollout._fields])

    def over_ranks(tensor):
        name = next(fields)
        if name is None:
            return [torch.tensor([e.ids.shape[1], e.mask.shape[1]]) for e in ranks]
        width = tensor.shape[1:]
        parts = [getattr(e, name).to(tensor.dtype) for e in ranks]
        return [torch.nn.functional.pad(p, (0, width[0] - p.shape[1])) if width else p for p in parts]

    whole, expected = join_ranks(ranks[0], 2, over_ranks), rollout(list(range(8)))
    values = whole._asdict()
    assert values.pop("kl_coef") == 0.5
    for name, tensor in values.items():
        assert torch.equal(tensor, getattr(expected, name)), name
        assert tensor.dtype == getattr(expected, name).dtype


def test_a_place_in_the_prompts_means_the_same_on_another_number_of_ranks():
    """4 of 6 prompts taken by one process; two ranks, each with every second prompt, go on with the 5th and 6th."""
    one = PromptStream(Prompts([1, 2, 3, 4, 5, 6], 6))
    one.take(4)
    rank = PromptStream(Prompts([1, 3, 5], 3), ranks=2)
    rank.load_state_dict(one.state_dict())
    assert [len(prompt.ids) for prompt in rank.take(1)] == [5]
    with pytest.raises(ValueError, match=r"\b4\b.*\b3\b"):
        PromptStream(Prompts([1], 1), ranks=3).load_state_dict(one.state_dict())


@pytest.mark.parametrize("before", range(7))
def test_a_prompt_stream_goes_on_where_it_was(before: int):
    """5 prompts in batches of 2, read by threes over several passes."""
    whole = PromptStream(Prompts([1, 2, 3, 4, 5], 2))
    taken = [[p.number for p in whole.take(3)] for _ in range(7)]
    assert [n for part in taken for n in part] == [i % 5 for i in range(21)]
    first = PromptStream(Prompts([1, 2, 3, 4, 5], 2))
    for _ in range(before):
        first.take(3)
    second = PromptStream(Prompts([1, 2, 3, 4, 5], 2))
    second.load_state_dict(first.state_dict())
    assert [[p.number for p in second.take(3)] for _ in range(7 - before)] == taken[before:]


def test_occurrences_are_counted_in_the_order_of_one_process():
    """All: 0 1 | 2 0 | 1 2 | 0 0, of which rank 0 has the first of each pair."""
    assert earlier_occurrences([[0, 2, 1, 0], [1, 0, 2, 0]]) == [[0, 0, 1, 2], [0, 1, 1, 3]]
    assert earlier_occurrences([[4, 4, 7, 4]]) == [[0, 1, 0, 2]]


def test_two_ranks_draw_what_one_process_draws_and_nothing_twice():
    """4 prompts and 16 episodes in groups of 2: every prompt occurs twice, on different ranks for some."""
    numbers = [0, 1, 2, 3, 0, 2, 1, 3]
    prompts = [RolloutPrompt([2, 3 + number], number, "", {}) for number in numbers]
    network, config = policy(), RolloutConfig(episodes=16, group_size=2, max_new_tokens=12)
    common = {"config": config, "tokenizer": Tokens(), "seed": 0, "iteration": 1}
    whole = sample_rollout(network, prompts, **common).texts
    earlier = earlier_occurrences([numbers[::2], numbers[1::2]])
    parts = [sample_rollout(network, prompts[r::2], earlier=earlier[r], **common).texts for r in range(2)]
    joined = [text for i in range(4) for part in parts for text in part[2 * i : 2 * i + 2]]
    assert joined == whole
    for prompt in range(4):
        own = [text for i, text in enumerate(whole) if numbers[i // 2] == prompt]
        assert len(own) == len(set(own)) == 4


def test_running_statistics_normalise_by_all_rewards_so_far():
    logged = Logged()
    stage = ppo(scoring=ScoringConfig(normalise="running", missing_eos_penalty=0.0))
    rewards = []
    stage.configure_model()
    judge = stage.reward

    class Remembering(Reward):
        def score(self, prompts, responses):
            rewards.extend(judge(prompts, responses))
            return rewards[-len(responses) :]

    stage.reward = Remembering()
    fit(stage, callbacks=[logged], data=PromptModule())
    statistics = stage.statistics
    assert statistics.mean == pytest.approx(np.mean(rewards), rel=1e-6)
    assert statistics.squares / (statistics.count - 1) == pytest.approx(np.var(rewards, ddof=1), rel=1e-6)
    last = (np.array(rewards[-8:]) - np.mean(rewards)) / np.std(rewards, ddof=1)
    assert logged.rows[-1]["rollout/reward"] == pytest.approx(last.mean(), abs=1e-5)
