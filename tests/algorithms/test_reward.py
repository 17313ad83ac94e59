"""The Reward stage: its step against transformers, its metrics against hand-derived numbers, its directory in use."""

import json
import math
import sys
import types
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from dpo_pairs import several_pairs
from test_language_model import fit
from torchmetrics.classification import BinaryCalibrationError
from transformers import AutoModelForSequenceClassification

from align.algorithms.reward_modeling import PairScores, Reward
from align.batches import PairBatch
from align.callbacks.model_directory import ModelDirectory
from align.data.pair_data import PreferenceData
from align.io.directory import load_scalar, save_network
from align.io.manifest import read_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.layers import RMSNorm
from align.rewards.functions import load_reward
from align.tokenizer import train_tokenizer
from align.training.optimization import OptimizerConfig, ScheduleConfig

CONFIG = GPTConfig(vocab_size=20, layers=2, heads=2, width=16, ff_width=16, context=8, init_std=0.2)
PAD = 0


def make_batch(lengths: list[tuple[int, int]], seed: int = 0, first: int = 0) -> PairBatch:
    """A pair for each (tokens of chosen, tokens of rejected); (0, 0) is padding. The prompt is the first token."""
    count = torch.tensor(lengths).T.reshape(-1)
    width = int(count.max())
    ids = torch.randint(1, 20, (len(count), width), generator=torch.Generator().manual_seed(seed))
    column = torch.arange(width)
    ids[column >= count[:, None]] = PAD
    mask = (column >= 1) & (column < count[:, None])
    real = [one > 0 for one, _ in lengths]
    numbers = torch.tensor([first + row if there else -1 for row, there in enumerate(real)])
    prompts = tuple(f"p{first + row}" if there else "" for row, there in enumerate(real))
    return PairBatch(
        ids, mask, count, torch.tensor([int(there) for there in real]), numbers, prompts, ({},) * len(prompts)
    )


def join(*batches: PairBatch) -> PairBatch:
    """One batch of all the pairs: the chosen rows of all, then the rejected rows of all."""
    width = max(batch.ids.shape[1] for batch in batches)

    def halves(name: str) -> torch.Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if parts[0].dim() == 2:
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
        pairs = [len(part) // 2 for part in parts]
        return torch.cat(
            [p[:n] for p, n in zip(parts, pairs, strict=True)] + [p[n:] for p, n in zip(parts, pairs, strict=True)]
        )

    return PairBatch(
        halves("ids"),
        halves("mask"),
        halves("lengths"),
        torch.cat([batch.prompt_lengths for batch in batches]),
        torch.cat([batch.numbers for batch in batches]),
        tuple(prompt for batch in batches for prompt in batch.prompts),
        tuple(columns for batch in batches for columns in batch.columns),
    )


class Letters:
    """Decodes ids to letters; ids are those of make_batch."""

    vocab_size = 20

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + number) for number in ids)


class Pairs(pl.LightningDataModule):
    """Given batches in the given order."""

    def __init__(self, train: list[PairBatch], val: list[PairBatch] | None = None) -> None:
        super().__init__()
        self.train, self.val = train, val or []
        self.tokenizer = Letters()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.val, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader

    def record_loader(self, split: str):
        if split == "validation" and not self.val:
            raise ValueError("no validation pairs")
        return self.val if split == "validation" else self.train


def reward(config: GPTConfig = CONFIG, **settings) -> Reward:
    return Reward(
        network=ScalarGPT(config),
        **{"optimizer": OptimizerConfig(lr=0.01, weight_decay=0.0), "schedule": ScheduleConfig(kind="constant")}
        | settings,
    )


@torch.no_grad()
def row_scores(network: ScalarGPT, batch: PairBatch) -> list[float]:
    """Each row alone, unpadded, through the whole network."""
    out = []
    for row, count in zip(batch.ids, batch.lengths.tolist(), strict=True):
        out.append(network.scores(network.hidden(row[None, :count]))[0, -1].item() if count else 0.0)
    return out


def test_a_step_is_that_of_a_transformers_classifier(tmp_path):
    """Loss and gradients of one batch with padding, through files, against Llama's classifier and -log sigmoid."""
    stage = reward(normalise_on=0)
    save_network(stage._make(), tmp_path, bos_id=None, eos_ids=[1], pad_id=PAD)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = make_batch([(8, 5), (3, 7), (2, 2)])
    chosen, rejected = theirs(batch.ids, attention_mask=(batch.ids != PAD).long()).logits[:, 0].chunk(2)
    loss = -F.logsigmoid(chosen - rejected).mean()
    loss.backward()
    seen = {}

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.update({name: p.grad.clone() for name, p in module.network.named_parameters()})

    trainer = fit(stage, Pairs([batch]), callbacks=[Watch()])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert trainer.callback_metrics["train/accuracy"].item() == pytest.approx((chosen > rejected).float().mean().item())
    assert trainer.callback_metrics["train/margin"].item() == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("style", [{}, {"kv_heads": 1, "norm_placement": "post", "positions": "learned"}], ids=str)
def test_prompts_computed_once_give_the_scores_and_gradients_of_plain_rows(monkeypatch, dtype, tolerance, style):
    """With a pair of padding, and a pair of which one row has a token more than the context."""
    monkeypatch.setattr(RMSNorm, "exact", True)
    batch = make_batch([(9, 5), (3, 7), (0, 0), (2, 2)])._replace(prompt_lengths=torch.tensor([4, 2, 0, 1]))
    batch.ids[4:, :4] = torch.where(
        torch.arange(4) < batch.prompt_lengths[:, None], batch.ids[:4, :4], batch.ids[4:, :4]
    )
    weights, found = torch.tensor([1.0, 2.0, 0.0, -3.0, 0.5, 1.5, 0.0, 2.5], dtype=dtype), []
    network = ScalarGPT(replace(CONFIG, **style)).to(dtype)
    for shared_prefix in (False, True):
        stage = Reward(network=network, shared_prefix=shared_prefix)
        stage.build()
        scores = torch.cat(stage.score(batch))
        gradients = torch.autograd.grad((scores * weights).sum(), list(network.parameters()))
        found.append([scores[weights != 0].detach(), *gradients])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("style", [{}, {"kv_heads": 1, "norm_placement": "post", "positions": "learned"}], ids=str)
def test_responses_compared_several_times_are_computed_once(monkeypatch, style):
    """Prompts P (3 tokens) and Q (2), responses a, b, c to P and d, e to Q: pairs ab, ac, cb, de, one of padding, ba.

    The line holds 3 + (1 + 2 + 3) tokens of P's rows, 2 + (2 + 4) of Q's and one of padding: 18, where plain rows
    hold 12 x 6.
    """
    monkeypatch.setattr(RMSNorm, "exact", True)
    batch = several_pairs(PAD)
    network = ScalarGPT(replace(CONFIG, **style)).double()
    lines, found = [], []
    network.model.embed_tokens.register_forward_hook(lambda module, args, output: lines.append(args[0].shape))
    for shared_prefix in (False, True):
        stage = Reward(network=network, shared_prefix=shared_prefix)
        stage.build()
        chosen, rejected = stage.score(batch)
        loss = -F.logsigmoid(chosen - rejected)[batch.lengths[:6] > 0].sum()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-10, atol=1e-10)
    assert lines == [(12, 6), (1, 18)]


def test_accumulation_gives_the_gradient_of_one_big_batch():
    """Micro-batches of 3, 1 and 2 real pairs, rows of padding among them, against one batch of 6."""
    micro = [
        make_batch([(8, 5), (3, 7), (2, 2)], 1),
        make_batch([(4, 6), (0, 0), (0, 0)], 2),
        make_batch([(5, 5), (6, 1), (0, 0)], 3),
    ]
    one = join(
        make_batch([(8, 5), (3, 7), (2, 2)], 1), *(cut(batch, real) for batch, real in ((micro[1], 1), (micro[2], 2)))
    )
    small, big = reward(normalise_on=0), reward(normalise_on=0)
    fit(small, Pairs(micro * 3), accumulate_grad_batches=3, gradient_clip_val=0.5)
    fit(big, Pairs([one] * 3), gradient_clip_val=0.5)
    for a, b in zip(small.network.parameters(), big.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def cut(batch: PairBatch, real: int) -> PairBatch:
    """The first pairs of a batch."""
    pairs = len(batch.numbers)
    rows = [*range(real), *range(pairs, pairs + real)]
    return PairBatch(
        batch.ids[rows],
        batch.mask[rows],
        batch.lengths[rows],
        batch.prompt_lengths[:real],
        batch.numbers[:real],
        batch.prompts[:real],
        batch.columns[:real],
    )


def test_validation_by_hand(monkeypatch):
    """Five pairs in two batches; gold is a function of prompt and response.

    Gold is 0.1 a letter, but for p4, whose two sides are equal: pairs 0..3 are untied; lengths of responses differ by
    3, -4, 1 and 3 tokens, so 0, 1 and 3 are wide apart.
    """
    module = types.ModuleType("golden")
    asked = []

    def gold(prompts, responses):
        asked.append(list(prompts))
        return [0.5 if prompt == "p4" else 0.1 * len(text) for prompt, text in zip(prompts, responses, strict=True)]

    module.gold = gold
    monkeypatch.setitem(sys.modules, "golden", module)
    val = [make_batch([(8, 5), (3, 7), (4, 3)], 1), make_batch([(5, 2), (6, 4), (0, 0)], 2, first=3)]
    stage = reward(gold="golden:gold", optimizer=OptimizerConfig(lr=1e-12))
    trainer = fit(stage, Pairs([make_batch([(2, 2)])] * 2, val), limit_val_batches=1.0, val_check_interval=1)
    rows = [row_scores(stage.network.eval(), batch) for batch in val]
    chosen = torch.tensor(rows[0][:3] + rows[1][:2], dtype=torch.float64)
    rejected = torch.tensor(rows[0][3:] + rows[1][3:5], dtype=torch.float64)
    margin, scores = chosen - rejected, torch.cat((chosen, rejected))
    truth = torch.tensor([1, -1, 1, 1])
    agreed = (margin[:4].sign() == truth).double()
    expected = {
        "loss": -F.logsigmoid(margin).mean(),
        "accuracy": (margin > 0).double().mean(),
        "margin": margin.mean(),
        "score_mean": scores.mean(),
        "score_std": scores.std(correction=0),
        "gold_agreement": agreed.mean(),
        "gold_agreement_wide": agreed[[0, 1, 3]].mean(),
    }
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(value.item(), abs=1e-5), name
    assert "val/ece" in trainer.callback_metrics
    assert asked == [["p0", "p1", "p2"] * 2, ["p3", "p4"] * 2], "each pair is asked once, however many validations"


def test_calibration_against_torchmetrics():
    """Twenty bins over [0, 1], of which confidence fills the upper ten."""
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(500, generator=generator) * 2 + 0.5
    metric = PairScores()
    for part in margin.split(70):
        metric.update(part, torch.zeros_like(part), torch.zeros_like(part))
    theirs = BinaryCalibrationError(n_bins=20, norm="l1")(margin.abs().sigmoid(), (margin > 0).long())
    assert metric.compute()["ece"].item() == pytest.approx(theirs.item(), abs=1e-6)


def test_calibration_by_hand():
    """Two pairs of confidence sigmoid(1) = 0.7311, one right and one wrong: 0.2311. One sure and right: nearly 0.

    Together (2 x 0.2311 + 1 x 0.0000) / 3.
    """
    metric = PairScores()
    metric.update(torch.tensor([1.0, 0.0, 30.0]), torch.tensor([0.0, 1.0, 0.0]), torch.zeros(3))
    assert metric.compute()["ece"].item() == pytest.approx(2 * 0.2310586 / 3, abs=1e-6)


def test_gold_differences_of_a_fifth_are_not_wide():
    """0.9 - 0.7 is 0.20000000000000007 in floating point; only the last pair is wide."""
    metric = PairScores()
    gold = torch.tensor([0.9 - 0.7, 0.5 - 0.5, 0.2001], dtype=torch.float64)
    metric.update(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), gold)
    values = metric.compute()
    assert (values["gold_agreement"].item(), values["gold_agreement_wide"].item()) == (0.5, 1.0)
    metric.reset()
    metric.update(torch.ones(1), torch.zeros(1), torch.zeros(1))
    assert "gold_agreement" not in metric.compute()


def test_training_orders_the_pairs_and_every_matrix_moves():
    batch = make_batch([(8, 5), (3, 7), (6, 6), (4, 4), (0, 0)])
    stage = reward()
    stage.configure_model()
    before = {name: p.detach().clone() for name, p in stage.network.named_parameters()}
    trainer = fit(stage, Pairs([batch] * 60))
    assert trainer.callback_metrics["train/loss"].item() < 0.1
    assert trainer.callback_metrics["train/accuracy"].item() == 1.0
    assert all(not torch.equal(before[name], p) for name, p in stage.network.named_parameters())


def test_settings_reach_the_loss():
    """margin 1, smoothing 0.1, centering 0.5, scores c and r: softplus(1 - c + r) + 0.1 (c - r - 1) + (c + r)^2 / 2."""
    stage, batch = reward(margin=1.0, label_smoothing=0.1, centering=0.5), make_batch([(8, 5)])
    stage.configure_model()
    chosen, rejected = row_scores(stage.network, batch)
    expected = (
        math.log1p(math.exp(1 - chosen + rejected)) + 0.1 * (chosen - rejected - 1) + (chosen + rejected) ** 2 / 2
    )
    assert stage.compare(batch).loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_row_one_token_longer_than_the_context_is_read_to_the_context():
    stage, batch = reward(), make_batch([(9, 4)])
    stage.configure_model()
    with torch.no_grad():
        chosen, rejected = stage.score(batch)
    expected = row_scores(stage.network, batch._replace(lengths=torch.tensor([8, 4])))
    assert [chosen.item(), rejected.item()] == pytest.approx(expected, abs=1e-6)


# Failure drills.


def test_chosen_equals_rejected():
    """Loss ln 2, margin 0, half right, and no gradient but rounding."""
    half = make_batch([(6, 6)])
    batch = half._replace(ids=half.ids[:1].repeat(2, 1))
    stage = reward()
    trainer = fit(stage, Pairs([batch] * 3, [batch]), limit_val_batches=1.0)
    for split in ("train", "val"):
        assert trainer.callback_metrics[f"{split}/loss"].item() == pytest.approx(math.log(2))
        assert trainer.callback_metrics[f"{split}/margin"].item() == 0
        assert trainer.callback_metrics[f"{split}/accuracy"].item() == 0.5
    stage.network.zero_grad()
    stage.compare(batch).loss.sum().backward()
    assert max(parameter.grad.abs().max().item() for parameter in stage.network.parameters()) < 1e-6


def test_nan_stops_with_the_step_and_the_learning_rate():
    stage = reward()
    stage.configure_model()
    stage.network.score.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss.*nan.*step\D*0\b.*0\.01\b"):
        fit(stage, Pairs([make_batch([(3, 2)])]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -1.0}, r"margin.*-1\.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing.*0\.5.*\[0, 0\.5\)"),
        ({"centering": -0.1}, r"centering.*-0\.1"),
        ({"normalise_on": 1}, r"normalise_on\D*1\b.*\b2\b"),
        ({"gold": "sandbx"}, "'sandbx'"),
        ({"init_from": "somewhere"}, "Reward.*init_from"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        reward(**settings)


def test_data_that_lacks_something_is_refused():
    data = Pairs([make_batch([(3, 2)])])
    data.tokenizer = None
    with pytest.raises(ValueError, match="gold.*tokenizer"):
        fit(reward(gold="sandbox"), data)
    plain = pl.LightningDataModule()
    plain.train_dataloader = data.train_dataloader
    with pytest.raises(ValueError, match="normalise_on.*record_loader"):
        fit(reward(), plain)


# Normalisation and the directory.


@pytest.mark.parametrize(("val", "most", "used"), [(True, 512, 10), (True, 4, 4), (False, 512, 2)])
def test_normalisation_is_of_validation_responses_else_of_training(val: bool, most: int, used: int):
    """Ten responses in validation (five pairs beside padding), two in training."""
    batches = [make_batch([(8, 5), (3, 7), (4, 3)], 1), make_batch([(5, 2), (6, 4), (0, 0)], 2, first=3)]
    stage = reward(normalise_on=most)
    fit(stage, Pairs([make_batch([(2, 3)])], batches if val else []), limit_val_batches=1.0)
    extras = stage.manifest_extras()
    rows = [row_scores(stage.network, batch) for batch in (batches if val else [make_batch([(2, 3)])])]
    pairs = [pair for row in rows for pair in zip(row[: len(row) // 2], row[len(row) // 2 :], strict=True)]
    scores = torch.tensor(pairs).flatten()[:used].double()
    assert extras["reward_samples"] == used
    assert extras["reward_mean"] == pytest.approx(scores.mean().item(), abs=1e-5)
    assert extras["reward_std"] == pytest.approx(scores.std(correction=0).item(), abs=1e-5)


def test_from_a_language_model_to_a_reward(tmp_path):
    """PreferenceData, two passes, the directory: normalised to mean 0 and std 1, opened by transformers too."""
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    config = GPTConfig(vocab_size=263, layers=2, heads=2, width=16, ff_width=16, context=64, init_std=0.2)
    start = tmp_path / "sft"
    start.mkdir()
    tokenizer.save(start)
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    save_network(GPT(config), start, **ids)
    records = [{"prompt": f"say {n}", "chosen": "a" * (n % 5 + 1), "rejected": "b" * (n % 4 + 1)} for n in range(24)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = PreferenceData(
        str(start), str(file), val_fraction=0.25, context=64, batch_size=4, cache_dir=str(tmp_path / "cache")
    )
    stage = Reward(str(start), optimizer=OptimizerConfig(lr=0.01, weight_decay=0.0))
    trainer = fit(
        stage,
        data,
        limit_val_batches=1.0,
        max_epochs=3,
        callbacks=[ModelDirectory()],
        default_root_dir=tmp_path / "reward",
        use_distributed_sampler=False,
    )
    directory = tmp_path / "reward" / "model"
    manifest = read_manifest(directory)
    assert (manifest["stage"], manifest["reward_samples"]) == ("reward", 12)
    assert trainer.callback_metrics["val/accuracy"].item() > 0.5
    assert "AutoModelForSequenceClassification" in (directory / "README.md").read_text()
    model = load_reward(str(directory))
    held_out = records[18:]
    asked = [record["prompt"] for record in held_out] * 2
    scores = torch.tensor(model(asked, [record[side] for side in ("chosen", "rejected") for record in held_out]))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    row = model.encode("say 1", "a")
    theirs = AutoModelForSequenceClassification.from_pretrained(directory)(torch.tensor([row])).logits.item()
    assert model(["say 1"], ["a"])[0] == pytest.approx((theirs - model.mean) / model.std, abs=1e-4)
    assert load_scalar(directory).config == config
    predicted = [pair for batch in trainer.predict(stage, datamodule=data) for pair in batch]
    assert len(predicted) == 6
    assert predicted[0].keys() == {"chosen", "rejected"}
    again = Reward(str(directory), optimizer=OptimizerConfig(lr=1e-12))
    again.configure_model()
    assert torch.equal(again.network.score.weight, load_scalar(directory).score.weight), "a reward model keeps its head"
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        load_reward(str(start))


def test_bfloat16_products_keep_float32_scores():
    """bf16-mixed: weights and scores stay float32, the loss comes down."""
    batch = make_batch([(8, 5), (3, 7)])
    stage = reward()
    trainer = fit(stage, Pairs([batch] * 30), precision="bf16-mixed")
    assert {p.dtype for p in stage.network.parameters()} == {torch.float32}
    assert trainer.callback_metrics["train/loss"].item() < 0.5


@pytest.mark.slow
def test_compiled_training_is_eager_training():
    batches = [make_batch([(8, 5), (3, 7)], seed) for seed in range(4)]
    eager, compiled = reward(), reward(compile=True)
    one, other = fit(eager, Pairs(batches)), fit(compiled, Pairs(batches))
    expected = one.callback_metrics["train/loss"].item()
    assert other.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-3)
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
