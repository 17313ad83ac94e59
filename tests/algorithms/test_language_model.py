import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from align.algorithms.pretrain import Pretrain
from align.algorithms.sft import SFT
from align.batches import TokenBatch
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.optimization import OptimizerConfig, ScheduleConfig

CONFIG = GPTConfig(vocab_size=11, layers=1, heads=2, width=8, ff_width=8, context=8)


def make_batch(rows: int, counted: int, seed: int) -> TokenBatch:
    """Rows of 6 tokens of which the last ``counted`` are targets, 2 bytes each."""
    ids = torch.randint(11, (rows, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(rows, 6, dtype=torch.bool)
    mask[:, 6 - counted :] = True
    return TokenBatch(ids, mask, None, None, torch.full((rows,), 2 * counted))


def join(*batches: TokenBatch) -> TokenBatch:
    return TokenBatch(
        torch.cat([b.ids for b in batches]),
        torch.cat([b.mask for b in batches]),
        None,
        None,
        torch.cat([b.num_bytes for b in batches]),
    )


class Batches(pl.LightningDataModule):
    """Given batches in the given order."""

    def __init__(self, train: list[TokenBatch], val: list[TokenBatch] | None = None) -> None:
        super().__init__()
        self.train, self.val = train, val or []

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.val, batch_size=None)


def fit(
    stage: pl.LightningModule, data: pl.LightningDataModule, *, ckpt_path: str | None = None, **settings
) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
        }
        | settings
    )
    trainer.fit(stage, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def pretrain(**settings) -> Pretrain:
    schedule = ScheduleConfig(kind="constant")
    optimizer = OptimizerConfig(lr=0.1, weight_decay=0.0)
    return Pretrain(CONFIG, init_seed=0, optimizer=optimizer, schedule=schedule, **settings)


def test_accumulation_gives_the_gradient_of_one_big_batch():
    """Micro-batches of 10, 2 and 6 counted tokens against one batch of 18: weights agree after three steps."""
    micro = [make_batch(2, 5, 1), make_batch(2, 1, 2), make_batch(2, 3, 3)] * 3
    one = [join(*micro[:3])] * 3
    small, big = pretrain(), pretrain()
    fit(small, Batches(micro), accumulate_grad_batches=3, gradient_clip_val=0.5)
    fit(big, Batches(one), gradient_clip_val=0.5)
    for a, b in zip(small.network.parameters(), big.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_incomplete_last_window_is_divided_by_its_own_tokens():
    """Two micro-batches with an accumulation of 3: the step Lightning makes at the end counts just those two."""
    micro = [make_batch(2, 5, 1), make_batch(2, 1, 2)]
    small, big = pretrain(), pretrain()
    fit(small, Batches(micro), accumulate_grad_batches=3)
    fit(big, Batches([join(*micro)]))
    for a, b in zip(small.network.parameters(), big.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_validation_is_weighted_by_tokens():
    """Loss, perplexity and bits per byte against plain cross-entropy over all the counted tokens."""
    val = [make_batch(3, 5, 1), make_batch(1, 1, 2)]
    stage = pretrain()
    trainer = fit(stage, Batches([make_batch(1, 5, 0)], val), limit_val_batches=1.0)
    stage.network.eval()
    nll = [
        F.cross_entropy(stage.network(b.ids[:, :-1])[b.mask[:, 1:]], b.ids[:, 1:][b.mask[:, 1:]], reduction="sum")
        for b in val
    ]
    total, tokens = sum(nll).item(), 16
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(total / tokens, rel=1e-5)
    assert trainer.callback_metrics["val/perplexity"].item() == pytest.approx(2.718281828 ** (total / tokens), rel=1e-5)
    assert trainer.callback_metrics["val/bits_per_byte"].item() == pytest.approx(
        total / 0.6931471806 / (2 * tokens), rel=1e-5
    )


def test_training_lowers_the_loss_and_every_matrix_moves():
    batch = make_batch(4, 5, 0)
    stage = pretrain()
    stage.configure_model()
    before = {name: p.detach().clone() for name, p in stage.network.named_parameters()}
    trainer = fit(stage, Batches([batch] * 40))
    assert trainer.callback_metrics["train/loss"].item() < 0.5
    assert all(not torch.equal(before[name], p) for name, p in stage.network.named_parameters())


def test_the_schedule_is_stepped_per_optimizer_step():
    """Linear to 0 over 4 optimizer steps of 2 micro-batches: the factor after the last step is that of step 4."""
    stage = pretrain()
    stage.schedule_config = ScheduleConfig(kind="linear", final_factor=0.0)
    trainer = fit(stage, Batches([make_batch(1, 5, i) for i in range(8)]), accumulate_grad_batches=2)
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


def test_dropout_is_a_function_of_the_batch_number_not_of_history():
    """Drawing from torch's generator between batches does not change what the next batch draws."""
    config = GPTConfig(vocab_size=11, layers=1, heads=2, width=8, ff_width=8, context=8, dropout=0.5)

    class Disturbed(Pretrain):
        def on_train_batch_end(self, *_):
            torch.rand(int(torch.randint(1, 9, ())))

    def run(kind):
        torch.manual_seed(3)
        stage = kind(config, optimizer=OptimizerConfig(lr=0.1))
        fit(stage, Batches([make_batch(2, 5, i) for i in range(4)]))
        return stage.network.state_dict()

    torch.testing.assert_close(run(Pretrain), run(Disturbed), rtol=0, atol=0)


def test_nan_stops_with_the_step_and_the_learning_rate():
    stage = pretrain()
    stage.configure_model()
    stage.network.output_weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss.*nan.*step\D*0\b.*0\.1\b"):
        fit(stage, Batches([make_batch(1, 5, 0)]))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "tokenizer",
            type("T", (), {"vocab_size": 12})(),
            r"\b12\b.*vocab_size\D*11\b",
        ),
        ("context", 9, r"data\.context\D*9\b.*\b8\b"),
    ],
)
def test_data_the_network_cannot_read_is_refused(attribute: str, value, message: str):
    data = Batches([make_batch(1, 5, 0)])
    setattr(data, attribute, value)
    with pytest.raises(ValueError, match=message):
        fit(pretrain(), data)


def test_exactly_one_source_of_weights():
    with pytest.raises(ValueError, match="Pretrain.*gpt.*init_from"):
        Pretrain()
    with pytest.raises(ValueError, match="Pretrain.*gpt.*init_from"):
        Pretrain(CONFIG, "somewhere")
    with pytest.raises(ValueError, match="SFT.*init_from"):
        SFT()
    assert SFT(network=GPT(CONFIG)).parent is None


def test_bfloat16_products_keep_float32_weights():
    """bf16-mixed: weights and optimizer state stay float32, the loss is float32 and comes down."""
    batch = make_batch(4, 5, 0)
    stage = pretrain()
    trainer = fit(stage, Batches([batch] * 20), precision="bf16-mixed")
    assert {p.dtype for p in stage.network.parameters()} == {torch.float32}
    assert trainer.callback_metrics["train/loss"].dtype == torch.float32
    assert trainer.callback_metrics["train/loss"].item() < 1.0


@pytest.mark.slow
def test_compiled_training_is_eager_training():
    """Five steps, compiled and not: the same losses up to float32 rounding, and the same parameter names."""
    batches = [make_batch(4, 5, i) for i in range(5)]
    eager, compiled = pretrain(), pretrain(compile=True)
    one, other = fit(eager, Batches(batches)), fit(compiled, Batches(batches))
    assert other.callback_metrics["train/loss"].item() == pytest.approx(
        one.callback_metrics["train/loss"].item(), rel=1e-3
    )
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
