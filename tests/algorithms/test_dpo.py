"""DPO trains on real preference data through the Trainer, and says what it does."""

import dataclasses
import inspect
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dpo_pairs import CONFIG, Log, World, fit, policy, several_pairs
from naming import naming

from align.algorithms.dpo import DPO
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.reference_stage import ReferenceStage, prompt_ids
from align.algorithms.response_logprobs import response_logprobs
from align.batches import PairBatch
from align.model.gpt import GPT
from align.model.layers import RMSNorm
from align.objectives import PairLogprobs, PreferenceLoss, preference

LOSSES = [
    each
    for each in vars(preference).values()
    if isinstance(each, type) and issubclass(each, PreferenceLoss) and each is not PreferenceLoss
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("dpo"))


NAMES = {"loss", "accuracy", "margin", "logprob_chosen", "logprob_rejected", "reward_chosen", "reward_rejected"}


def test_it_learns_which_response_is_better(world):
    """The first loss is ln 2 at margin 0; then chosen responses gain on rejected ones, on validation prompts too."""
    log = Log()
    trainer = fit(
        world.stage(policy_evaluation=PolicyEvaluationConfig(prompts=4, max_new_tokens=8)),
        world.data(),
        max_epochs=12,
        callbacks=[log],
    )
    first, last = log.steps[0], log.steps[-1]
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["train/margin"] == pytest.approx(0, abs=1e-4)
    assert last["train/loss"] < 0.4
    assert last["train/margin"] > 0.5
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["val/accuracy"] == 1
    assert metrics["val/loss"] < 0.5
    assert {f"{split}/{name}" for split in ("train", "val") for name in NAMES} < set(metrics)
    assert {"policy/kl", "policy/length", "policy/eos_rate", "policy/distinct"} < set(metrics)
    assert metrics["policy/kl"] > 0
    assert metrics["val/margin"] == pytest.approx(
        metrics["val/reward_chosen"] - metrics["val/reward_rejected"], abs=1e-4
    )


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_logprobs_are_those_of_plain_softmax(world, shared_prefix):
    """Against log_softmax over each unpadded row alone, for a batch with a row of padding."""
    data = world.data(batch_size=5)
    data.setup("fit")
    network = policy()
    *_, batch = data.record_loader("train")
    assert batch.numbers.tolist() == [10, 11, -1, -1, -1]
    logprobs = response_logprobs(network, batch.rows, shared_prefix=shared_prefix)
    for row in range(10):
        length, prompt = int(batch.lengths[row]), int(batch.prompt_lengths[row % 5])
        expected = 0.0
        if length:
            ids = batch.ids[row, :length]
            table = network(ids[None, :-1])[0].detach().log_softmax(-1)
            expected = float(table[torch.arange(prompt - 1, length - 1), ids[prompt:]].sum())
        assert float(logprobs[row]) == pytest.approx(expected, abs=1e-4)


def test_responses_compared_several_times_are_computed_once(monkeypatch):
    """Prompts P (3 tokens) and Q (2), responses a, b, c to P and d, e to Q: pairs ab, ac, cb, de, one of padding, ba.

    Without the last token of each row, which predicts nothing, P's rows have 3 + (0 + 1 + 2) tokens, Q's 2 + (1 + 3),
    and padding has one: 13, where plain rows hold 12 x 5.
    """
    monkeypatch.setattr(RMSNorm, "exact", True)
    batch = several_pairs()
    network, lines, found = policy().double(), [], []
    network.model.embed_tokens.register_forward_hook(lambda module, args, output: lines.append(args[0].shape))
    for shared_prefix in (False, True):
        chosen, rejected = response_logprobs(network, batch.rows, shared_prefix=shared_prefix).chunk(2)
        loss = -F.logsigmoid(chosen - rejected)[batch.lengths[:6] > 0].sum()
        found.append([chosen.detach(), *torch.autograd.grad(loss, list(network.parameters()))])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-10, atol=1e-10)
    assert lines == [(12, 5), (1, 13)]
    # The same tokens with another boundary between prompt and response are another row.
    twice = torch.tensor([0, 0, 6, 7])
    ids, mask, lengths = (part[twice] for part in (batch.ids, batch.mask, batch.lengths))
    cut = PairBatch(ids, mask, lengths, torch.tensor([3, 2]), torch.tensor([0, 1]), ("", ""), ({}, {}))
    cut.mask[1, 2] = cut.mask[3, 2] = True
    plain, shared = (
        response_logprobs(network, cut.rows, shared_prefix=shared_prefix) for shared_prefix in (False, True)
    )
    torch.testing.assert_close(shared, plain, rtol=1e-10, atol=1e-10)
    assert plain[0] != plain[1]


def weights(stage: DPO) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in stage.network.parameters()]


def trained(world, *, data=None, trainer=None, **settings) -> list[torch.Tensor]:
    stage = world.stage(**settings)
    fit(stage, world.data(**data or {}), **trainer or {})
    return weights(stage)


def test_shared_prefix_and_reference_on_the_fly_train_the_same(world):
    """Three steps: the weights agree to float32's rounding, which Adam's division by small second moments widens."""
    usual = trained(world)
    for settings in ({"shared_prefix": False}, {"reference_logprobs": "on_the_fly"}):
        for a, b in zip(usual, trained(world, **settings), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_cached_reference_logprobs_are_those_on_the_fly(world):
    """Equal to 1e-4 nats per response: batches of other pairs have other padding."""
    stage, other = world.stage(), world.stage(reference_logprobs="on_the_fly")
    fit(stage, world.data(), max_steps=1)
    fit(other, world.data(), max_steps=1)
    data = world.data(batch_size=12)
    data.setup("fit")
    (batch,) = data.record_loader("train")
    for a, b in zip(stage._reference_logprobs("train", batch), other._reference_logprobs("train", batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_accumulation_gives_the_gradient_of_one_batch(world):
    """12 pairs as micro-batches of 5, 5 and 2 (with 3 of padding), against one batch of 12."""
    one = trained(world, data={"batch_size": 12})
    many = trained(world, data={"batch_size": 5}, trainer={"accumulate_grad_batches": 3})
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_batch_of_one(world):
    log = Log()
    fit(world.stage(), world.data(batch_size=1), callbacks=[log])
    assert len(log.steps) == 12
    assert all(math.isfinite(value) for step in log.steps for value in step.values())


@pytest.mark.parametrize("loss", [each() for each in LOSSES], ids=str)
def test_every_loss_trains(world, loss):
    """The loss falls from its value at margin 0 (which the stage checks); only some losses have reference log-probs."""
    log = Log()
    stage = world.stage(loss=loss, sft_coef=0.1)
    fit(stage, world.data(batch_size=12), max_epochs=15, callbacks=[log])
    assert log.steps[-1]["train/loss"] < log.steps[0]["train/loss"]
    assert log.steps[-1]["train/logprob_chosen"] > log.steps[-1]["train/logprob_rejected"]
    assert stage.reference is None
    assert bool(stage._tables) == loss.needs_reference


def test_sft_term_is_added_per_token(world):
    """0.7 nats per nat per token of the chosen response, on top of DPO's ln 2."""
    stage = world.stage(sft_coef=0.7)
    pairs = PairLogprobs(*(torch.tensor([x]) for x in (-6.0, -4.0, -6.0, -4.0)), torch.tensor([3]), torch.tensor([2]))
    assert stage.losses(pairs).loss.item() == pytest.approx(math.log(2) + 0.7 * 2)


def test_validation_is_weighted_by_pairs(world):
    """Five validation pairs in batches of 4 and 1 (with 3 of padding) give what one batch of 5 gives."""
    results = []
    for size in (4, 5):
        stage = world.stage()
        results.append(fit(stage, world.data(batch_size=size), limit_train_batches=0, max_epochs=1))
        results[-1].validate(stage, world.data(batch_size=size), verbose=False)
    first, second = ({k: float(v) for k, v in r.callback_metrics.items() if k.startswith("val/")} for r in results)
    assert set(first) == {f"val/{name}" for name in NAMES}
    assert first == pytest.approx(second, abs=1e-4)
    assert first["val/loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_test_split(world):
    stage = world.stage()
    trainer = fit(stage, world.data(), limit_val_batches=0)
    trainer.test(stage, world.data(test=world.validation), verbose=False)
    assert {f"test/{name}" for name in NAMES} <= set(trainer.callback_metrics)


def test_the_policy_is_sampled_on_validation_prompts_and_judged(world):
    stage = world.stage(policy_evaluation=PolicyEvaluationConfig(prompts=3, max_new_tokens=5, judge="test_dpo:longer"))
    trainer = fit(stage, world.data())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("policy/")}
    assert set(metrics) == {"policy/kl", "policy/length", "policy/eos_rate", "policy/distinct", "policy/reward"}
    assert metrics["policy/reward"] == 7
    assert 1 <= metrics["policy/length"] <= 5


def longer(prompts, responses):
    return [7.0 for _ in zip(prompts, responses, strict=True)]


def test_the_reference_stays_and_is_not_saved(world, tmp_path):
    stage = world.stage(reference_logprobs="on_the_fly")
    trainer = fit(stage, world.data())
    for a, b in zip(policy().parameters(), stage.reference.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(policy().parameters(), stage.network.parameters(), strict=True))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("network.") for name in state)


def test_a_network_built_in_python_is_its_own_reference(world):
    log = Log()
    stage = world.stage(network=policy(3))
    fit(stage, world.data(), callbacks=[log])
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    for a, b in zip(policy(3).parameters(), stage.reference.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(name.startswith("network.") for name in stage.state_dict())


def test_dropout_is_off(world):
    """The network was trained with dropout: DPO's first loss is still ln 2."""
    network = GPT(dataclasses.replace(CONFIG, dropout=0.5))
    log = Log()
    fit(world.stage(network=network), world.data(), max_steps=1, callbacks=[log])
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_prompts_are_those_of_the_pairs(world):
    data = world.data(batch_size=5)
    data.setup("fit")
    *_, batch = data.record_loader("train")
    prompts = prompt_ids(batch)
    assert [bool(prompt) for prompt in prompts] == [True, True, False, False, False]
    text = [{"role": "user", "content": batch.prompts[1]}]
    assert prompts[1] == data.tokenizer.render_chat(text, add_generation_prompt=True).ids


def test_sixteen_bit_products_pass_the_check_at_step_0(world):
    """bf16-mixed: cached log-probs come from other shapes, so the first loss is nearly ln 2; weights stay float32."""
    log = Log()
    stage = world.stage()
    fit(stage, world.data(), precision="bf16-mixed", callbacks=[log])
    assert log.steps[0]["train/loss"] == pytest.approx(math.log(2), abs=0.02)
    assert {parameter.dtype for parameter in stage.network.parameters()} == {torch.float32}


@dataclasses.dataclass(frozen=True)
class MeanLoss(preference.DPO):
    """A user's mistake: the mean over the pairs."""

    def __call__(self, pairs):
        losses = super().__call__(pairs)
        return losses._replace(loss=losses.loss.mean())


def test_a_loss_of_the_wrong_shape_is_named(world):
    with pytest.raises(ValueError, match=naming("MeanLoss", "loss", "()", "(4,)")):
        fit(world.stage(loss=MeanLoss()), world.data(), max_steps=1)


def test_every_metric_is_in_the_glossary(world):
    docs = Path(__file__).parents[2] / "docs"
    judged = world.stage(policy_evaluation=PolicyEvaluationConfig(prompts=2, max_new_tokens=2, judge="test_dpo:longer"))
    trainer = fit(judged, world.data(), max_steps=1)
    glossary, page = (docs / "metrics.md").read_text(), (docs / "dpo.md").read_text()
    for name in trainer.callback_metrics:
        assert f"`{name}`" in glossary, name
        assert f"`{name.removeprefix('train/').removeprefix('val/')}`" in page, name


def test_every_setting_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "dpo.md").read_text()
    others = ("network", "policy_evaluation", "optimizer", "schedule")
    signatures = (inspect.signature(kind).parameters for kind in (ReferenceStage, DPO))
    names = [name for signature in signatures for name in signature if name not in (*others, "kwargs")]
    names += [f"policy_evaluation.{field.name}" for field in dataclasses.fields(PolicyEvaluationConfig)]
    assert [name for name in names if f"| `{name}`" not in page] == []
    assert [loss.__name__ for loss in LOSSES if f"| `{loss.__name__}`" not in page] == []
    settings = {field.name for loss in LOSSES for field in dataclasses.fields(loss)}
    assert [name for name in settings if f"| `loss.{name}`" not in page] == []
