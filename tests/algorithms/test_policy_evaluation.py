"""Policy evaluation: its KL against all sequences enumerated, its sums, and what it asks."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig, sampled_kl
from align.generation.sampled_ids import SampledIds
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.rewards import FunctionReward

CONFIG = GPTConfig(vocab_size=5, layers=1, heads=2, width=8, ff_width=8, context=8)


class Words:
    """Letters for ids; 4 ends a response."""

    stop_ids = (4,)
    missing_ids = ()
    pad_id = 0
    vocab_size = 5

    def decode(self, ids):
        return "".join("abcde"[i] for i in ids)


def network(seed: int, scale: float = 1.0) -> GPT:
    net = GPT(CONFIG)
    net.initialise(seed)
    net.output_weight.data *= scale
    return net


def count_a(prompts, responses):
    return [response.count("a") + 10 * len(prompt) for prompt, response in zip(prompts, responses, strict=True)]


def logprobs(net: GPT, ids: list[int], temperature: float) -> torch.Tensor:
    return (net(torch.tensor([ids]))[0] / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_is_that_of_whole_responses(temperature: float):
    """Two tokens after the prompt, all 25 of them: the mean of the estimate under the policy is the KL of the pairs."""
    policy, reference, prompt = network(1, 30.0), network(2, 30.0), [1, 2]
    exact = estimate = 0.0
    with torch.no_grad():
        for a, b in itertools.product(range(5), repeat=2):
            ours, theirs = (logprobs(net, [*prompt, a, b], temperature) for net in (policy, reference))
            p, q = (table[1, a] + table[2, b] for table in (ours, theirs))
            exact += float(p.exp() * (p - q))
            kl = sampled_kl(policy, reference, [[*prompt, a, b]], [2], temperature=temperature)
            estimate += float(p.exp() * kl)
    assert exact > 0.01
    assert estimate == pytest.approx(exact, rel=1e-4)


def test_padding_rows_are_outside_the_kl():
    """One token after the prompt, of three ids; rows 3 and 4 are padding, and differ most."""
    policy, reference, prompt = network(1, 30.0), network(2, 30.0), [1, 2]
    with torch.no_grad():
        p, q = (net(torch.tensor([prompt]))[0, -1, :3].log_softmax(-1) for net in (policy, reference))
        found = sampled_kl(policy, reference, [[*prompt, 0]], [1], sampled=SampledIds(3))
    assert float(found) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5), st.integers(0, 99))
def test_rows_do_not_depend_on_their_batch(sizes: list[tuple[int, int]], seed: int):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(5, (p + r,), generator=generator).tolist() for p, r in sizes]
    lengths = [r for _, r in sizes]
    policy, reference = network(1, 30.0), network(2, 30.0)
    together = sampled_kl(policy, reference, rows, lengths)
    alone = [sampled_kl(policy, reference, [row], [n])[0] for row, n in zip(rows, lengths, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert bool((together >= -1e-6).all())


def test_no_distance_from_itself_and_no_kl_without_a_reference():
    policy = network(1, 30.0)
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(max_new_tokens=4))
    evaluation.update(policy, policy, [[1, 2], [3]], ["x", "y"], Words(), columns=[{}, {}])
    assert evaluation.compute()["kl"] == 0
    evaluation.reset()
    evaluation.update(policy, None, [[1, 2], [3]], ["x", "y"], Words(), columns=[{}, {}])
    assert set(evaluation.compute()) == {"length", "eos_rate", "distinct"}


def test_sums_by_hand():
    """A network that always says 1 until it is cut: 3 tokens each, none ended, one distinct response of two."""
    policy = network(1)
    policy.model.embed_tokens.weight.data.zero_()
    policy.model.embed_tokens.weight.data[1] = 1.0
    policy.model.norm.weight.data.fill_(100.0)
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(max_new_tokens=3))
    evaluation._judge = FunctionReward("count_a", count_a)
    evaluation.update(policy, None, [[1, 1], [1]], ["x", "yy"], Words(), columns=[{}, {}])
    values = {name: float(value) for name, value in evaluation.compute().items()}
    assert values == {"length": 3, "eos_rate": 0, "distinct": 0.5, "reward": 15}


def test_a_stop_token_ends_and_counts():
    policy = network(1)
    policy.model.embed_tokens.weight.data.zero_()
    policy.model.embed_tokens.weight.data[4] = 1.0
    policy.model.embed_tokens.weight.data[1] = 0.5
    policy.model.norm.weight.data.fill_(100.0)
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(max_new_tokens=3))
    evaluation.update(policy, None, [[1]], ["x"], Words(), columns=[{}])
    assert {name: float(value) for name, value in evaluation.compute().items()} == {
        "length": 1,
        "eos_rate": 1,
        "distinct": 1,
    }


def test_the_first_different_prompts_are_asked_whatever_the_batches():
    """Five different prompts of seven rows, one of them padding; three are wanted."""
    prompts, texts = [[1], [2], [1], [], [3], [1, 2], [2, 2]], list("abacdef")
    asked = []

    def note(prompts, responses):
        asked.extend(prompts)
        return [0.0] * len(prompts)

    for sizes in ((7,), (2, 5), (1, 1, 1, 1, 1, 1, 1)):
        evaluation = PolicyEvaluation(PolicyEvaluationConfig(prompts=3, max_new_tokens=2))
        evaluation._judge = FunctionReward("note", note)
        start = 0
        for size in sizes:
            rows = slice(start, start + size)
            evaluation.update(network(1), None, prompts[rows], texts[rows], Words(), columns=[{}] * size)
            start += size
        assert asked == ["a", "b", "d"]
        asked.clear()


def test_the_same_at_each_validation():
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(max_new_tokens=6))
    policy, reference = network(1), network(2, 30.0)
    runs = []
    for _ in range(2):
        evaluation.update(policy, reference, [[1, 2], [3]], ["x", "y"], Words(), columns=[{}, {}])
        runs.append({name: float(value) for name, value in evaluation.compute().items()})
        evaluation.reset()
    assert runs[0] == runs[1]


def test_nothing_sampled_gives_nothing():
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(prompts=0))
    evaluation.update(network(1), None, [[1]], ["x"], Words(), columns=[{}])
    assert evaluation.compute() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": -1}, r"policy_evaluation\.prompts.*-1"),
        ({"temperature": 0}, r"policy_evaluation\.temperature\D*0\b"),
        ({"max_new_tokens": 0}, r"policy_evaluation\.max_new_tokens\D*0\b"),
        ({"seed": -1}, r"policy_evaluation\.seed.*-1"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PolicyEvaluationConfig(**settings)


def test_an_unknown_judge_is_refused_before_training():
    with pytest.raises(ValueError, match="'nobody'"):
        PolicyEvaluation(PolicyEvaluationConfig(judge="nobody"))


@pytest.mark.parametrize(
    ("prompts", "trained", "wanted"),
    [(None, 80_000, 47), (None, 1_000, 8), (None, 10**6, 64), (0, 80_000, 0), (100, 80_000, 100)],
)
def test_policy_evaluation_costs_a_tenth_of_the_training(prompts: int | None, trained: int, wanted: int):
    """80,000 tokens between validations, and 40 + 128 for each response: 8,000 / 168 = 47."""
    evaluation = PolicyEvaluation(PolicyEvaluationConfig(prompts=prompts, max_new_tokens=128))
    evaluation.bound_cost(trained, 40.0)
    assert evaluation.wanted == wanted
