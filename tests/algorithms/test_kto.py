"""KTO trains on real feedback through the Trainer, and its loss and gradient are those of TRL."""

import dataclasses
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from dpo_pairs import Log, fit, policy, write_pairs
from feedback_records import FeedbackWorld
from naming import naming

from align.adapters.lora import LoraConfig
from align.algorithms.kto import KTO
from align.algorithms.memory_report import computed_tokens
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.reference_stage import ReferenceStage
from align.callbacks.cost import Cost
from align.objectives import FeedbackLoss, feedback
from align.objectives.feedback import APOZeroUnpaired

LOSSES = [
    each
    for each in vars(feedback).values()
    if isinstance(each, type) and issubclass(each, FeedbackLoss) and each is not FeedbackLoss
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return FeedbackWorld(tmp_path_factory.mktemp("kto"))


class Gradients(pl.Callback):
    """The gradient of the last step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.found = {name: parameter.grad.clone() for name, parameter in module.network.named_parameters()}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reference_logprobs", ["precomputed", "on_the_fly"])
def test_loss_and_gradient_are_those_of_trls_trainer(tmp_path, kind, reference_logprobs):
    """The same records through both tokenizers, collators and losses, with the same weights in the networks."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    world, gradients, log = FeedbackWorld(tmp_path, pairs=7), Gradients(), Log()
    reference = world.save(policy(2), "reference")
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    stage = world.stage(
        loss=kind(**weights), reference=reference, other_reference=True, reference_logprobs=reference_logprobs
    )
    fit(stage, world.data(batch_size=7, validation=None), max_steps=1, callbacks=[gradients, log])

    names = {"KTO": "kto", "APOZeroUnpaired": "apo_zero_unpaired"}
    settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "max_length": None}
    config = KTOConfig(
        str(tmp_path / "trl"),
        loss_type=names[kind.__name__],
        per_device_train_batch_size=7,
        **weights,
        **settings,
    )
    start, other = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (world.start, reference))
    records = [json.loads(line) for line in Path(world.train).read_text().splitlines()]
    trainer = KTOTrainer(
        start,
        ref_model=other,
        args=config,
        train_dataset=Dataset.from_list(records),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )
    loss = trainer._compute_loss(start, next(iter(trainer.get_train_dataloader())), False)
    loss.backward()
    assert log.steps[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    (kl,) = (found for mode in trainer._metrics.values() for found in mode.get("kl", []))
    point = log.steps[0]["train/reference_point"]
    assert point == pytest.approx(kl, rel=1e-4)
    assert (point > 1) == (kind is not APOZeroUnpaired)
    expected = {name: parameter.grad for name, parameter in start.named_parameters()}
    assert expected.keys() == gradients.found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients.found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


NAMES = {"loss", "accuracy", "margin", "reference_point", "logprob_chosen", "logprob_rejected"}
NAMES |= {"reward_chosen", "reward_rejected"}


def test_it_learns_which_responses_are_desirable(world):
    """The first loss is 1/2 at gain 0; then desirable responses gain on the others, on validation prompts too."""
    log = Log()
    trainer = fit(
        world.stage(policy_evaluation=PolicyEvaluationConfig(prompts=4, max_new_tokens=8)),
        world.data(),
        max_epochs=12,
        callbacks=[log],
    )
    first, last = log.steps[0], log.steps[-1]
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["train/reference_point"] == pytest.approx(0, abs=1e-4)
    assert last["train/loss"] < 0.45
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["val/accuracy"] > 0.6
    assert metrics["val/loss"] < 0.5
    assert metrics["val/margin"] > 0.2
    assert {f"{split}/{name}" for split in ("train", "val") for name in NAMES} <= set(metrics)
    assert metrics["policy/kl"] > 0
    assert metrics["val/margin"] == pytest.approx(
        metrics["val/reward_chosen"] - metrics["val/reward_rejected"], abs=1e-4
    )


def test_metrics_of_a_label_are_means_over_its_responses(world):
    """Batches of one response log the metrics of its label alone, and no margin."""
    log = Log()
    fit(world.stage(), world.data(batch_size=1), callbacks=[log], limit_val_batches=0)
    assert len(log.steps) == 12
    data = world.data()
    data.setup("fit")
    (batch,) = (batch for batch in data.record_loader("train") if 0 in batch.numbers)
    assert batch.desirable.tolist() == [True, False, True, False]
    counted = world.stage().counted(batch._replace(numbers=torch.tensor([0, 1, 2, -1])))
    real = [True, True, True, False]
    chosen, rejected = [True, False, True, False], [False, True, False, False]
    assert dict(zip(world.stage().metric_names, counted.tolist(), strict=True)) == {
        **dict.fromkeys(("loss", "accuracy", "reference_point"), real),
        **dict.fromkeys(("logprob_chosen", "reward_chosen"), chosen),
        **dict.fromkeys(("logprob_rejected", "reward_rejected"), rejected),
    }


def test_feedback_of_one_label_logs_its_metrics_and_warns(world, tmp_path):
    path = tmp_path / "liked.jsonl"
    records = [{"prompt": f"a{i}", "completion": "b", "label": 1} for i in range(4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    log = Log()
    data = world.data_module(str(world.folder / "tokenizer"), str(path), context=40, cache_dir=tmp_path)
    with pytest.warns(UserWarning, match=naming("4", "desirable", "KTO")):
        fit(world.stage(), data, callbacks=[log])
    assert {name for name in log.steps[0] if name.endswith(("rejected", "margin"))} == set()
    assert "train/reward_chosen" in log.steps[0]


def test_labels_out_of_balance_warn_with_the_weights_that_balance_them(world):
    stage = world.stage()
    with pytest.warns(UserWarning, match=naming("30", "10", "3.00", "desirable_weight", "0.333", "undesirable_weight")):
        stage._check_balance(30, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weights in ({"desirable_weight": 1 / 3}, {"undesirable_weight": 2.5}):
            world.stage(loss=feedback.KTO(**weights))._check_balance(30, 10)
        stage._check_balance(13, 10)


def test_pairs_are_two_responses_each(world, tmp_path):
    """Four pairs: eight responses, and a first loss of 1/2."""
    log, pairs = Log(), write_pairs(tmp_path / "pairs.jsonl", 4)
    data = world.data_module(
        str(world.folder / "tokenizer"), pairs, context=40, batch_size=2, by_prompt=True, cache_dir=tmp_path
    )
    fit(world.stage(), data, callbacks=[log])
    assert data.label_counts("train") == (4, 4)
    assert len(log.steps) == 2
    assert log.steps[0]["train/loss"] == pytest.approx(0.5, abs=1e-5)


def trained(world, *, data=None, trainer=None, **settings) -> list[torch.Tensor]:
    stage = world.stage(**settings)
    fit(stage, world.data(**data or {}), **trainer or {})
    return [parameter.detach().clone() for parameter in stage.network.parameters()]


def test_reference_on_the_fly_and_padded_rows_train_the_same(world):
    usual = trained(world)
    for settings in ({"shared_prefix": False}, {"reference_logprobs": "on_the_fly"}):
        for a, b in zip(usual, trained(world, **settings), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_without_a_reference_point_mismatched_responses_are_not_read(world):
    """Then a micro-batch's loss needs no other one: accumulation gives the gradient of one batch."""
    read = []

    class Watched(KTO):
        def response_logprobs(self, network, rows):
            read.append(len(rows.ids))
            return super().response_logprobs(network, rows)

    stage = Watched(world.start, loss=APOZeroUnpaired(), policy_evaluation=PolicyEvaluationConfig(prompts=0))
    fit(stage, world.data(batch_size=12), limit_val_batches=0)
    assert read[-1] == 12
    assert 12 in read
    loss = {"loss": APOZeroUnpaired()}
    one = trained(world, data={"batch_size": 12}, **loss)
    many = trained(world, data={"batch_size": 5}, trainer={"accumulate_grad_batches": 3}, **loss)
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_resuming_within_an_epoch_is_bitwise_identical(world, tmp_path, lora):
    """Two epochs of three steps, resumed after the fourth; with adapters the reference is the base."""

    class Saved(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "4.ckpt")

    log, whole, resumed = Log(), world.stage(lora=lora), world.stage(lora=lora)
    fit(whole, world.data(), max_epochs=2, callbacks=[Saved(), log])
    fit(resumed, world.data(), max_epochs=2, ckpt_path=str(tmp_path / "4.ckpt"))
    assert log.steps[0]["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert log.steps[-1]["train/loss"] != log.steps[0]["train/loss"]
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_trained_on_is_what_counts_as_work(world):
    """The mismatched rows are read without gradient: neither memory nor cost count them."""
    cost, data = Cost(), world.data(batch_size=12)
    fit(world.stage(), data, callbacks=[cost])
    (batch,) = data.record_loader("train")
    tokens = int(batch.lengths[:12].sum())
    assert computed_tokens(batch) == tokens
    state = cost.state_dict()
    assert (state["tokens_trained"], state["labels"], state["rows"]) == (tokens, 12, 12)


@dataclasses.dataclass(frozen=True)
class MeanLoss(feedback.KTO):
    """A user's mistake: the mean over the responses."""

    def __call__(self, logprobs):
        losses = super().__call__(logprobs)
        return losses._replace(loss=losses.loss.mean())


def test_a_loss_of_the_wrong_shape_is_named(world):
    with pytest.raises(ValueError, match=naming("MeanLoss", "loss", "()", "(4,)")):
        fit(world.stage(loss=MeanLoss()), world.data(), max_steps=1)


def test_another_reference_is_refused(world):
    """Its first loss is not that of equal networks, 1/2."""
    other = world.save(policy(2), "other")
    with pytest.raises(ValueError, match=naming("step 0", "0.5000", other, "other_reference")):
        fit(world.stage(reference=other), world.data())


def test_every_metric_and_setting_is_documented(world):
    docs = Path(__file__).parents[2] / "docs"
    glossary, page = (docs / "metrics.md").read_text(), (docs / "kto.md").read_text()
    for split in ("train", "val", "test"):
        assert [name for name in NAMES if f"`{split}/{name}`" not in glossary] == []
    assert [name for name in NAMES if f"`{name}`" not in page] == []
    shared = (docs / "dpo.md").read_text()
    own = set(inspect.signature(KTO).parameters) - {"init_from", "kwargs"}
    assert [name for name in own if f"| `{name}`" not in page] == []
    others = ("network", "policy_evaluation", "optimizer", "schedule")
    names = [name for name in inspect.signature(ReferenceStage).parameters if name not in others]
    assert [name for name in names if f"| `{name}`" not in shared] == []
    assert [loss.__name__ for loss in LOSSES if f"| `{loss.__name__}`" not in page] == []
    settings = {field.name for loss in LOSSES for field in dataclasses.fields(loss)}
    assert [name for name in settings if f"| `loss.{name}`" not in page] == []


SCRIPT = """
import sys
from pathlib import Path

import torch

sys.path.insert(0, {here!r})
from dpo_pairs import fit
from feedback_records import FeedbackWorld
from align.training.strategy import ModelParallel

ranks, strategy, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
world = FeedbackWorld.__new__(FeedbackWorld)
world.folder, world.train, world.validation = folder, str(folder / "train.jsonl"), str(folder / "val.jsonl")
world.start = str(folder / "start")
stage = world.stage()
data = world.data(batch_size=6 // ranks, cache_dir=folder / f"cache-{{strategy}}{{ranks}}")
chosen = ModelParallel() if strategy == "fsdp2" else strategy
trainer = fit(stage, data, strategy=chosen, devices=ranks)
state = {{
    name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in stage.state_dict().items()
}}
if trainer.is_global_zero:
    metrics = {{k: v for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "train/"))}}
    torch.save([state, stage._tables["train"], metrics], folder / f"{{strategy}}.pt")
"""


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """Batches are split over ranks, the reference point is over all of them: weights and metrics of one process."""
    FeedbackWorld(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    results = {}
    for strategy, ranks in (("auto", 1), ("ddp", 2), ("fsdp2", 2)):
        words = [sys.executable, str(script), str(ranks), strategy, str(tmp_path)]
        subprocess.run(words, check=True, timeout=250, cwd=tmp_path)
        results[strategy] = torch.load(tmp_path / f"{strategy}.pt", weights_only=True)
    one = results.pop("auto")
    assert one[2]["train/reference_point"] >= 0
    for strategy, two in results.items():
        for name, weight in one[0].items():
            torch.testing.assert_close(two[0][name], weight, rtol=1e-3, atol=1e-4, msg=f"{strategy} {name}")
        torch.testing.assert_close(two[1], one[1], rtol=0, atol=1e-4)
        assert {name: float(value) for name, value in two[2].items()} == pytest.approx(
            {name: float(value) for name, value in one[2].items()}, rel=1e-3, abs=1e-3
        )
