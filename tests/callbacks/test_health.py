"""Each health check on series whose verdict is known; and NaN drills on real stages."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from naming import naming
from torch.utils.data import DataLoader

from align.algorithms.sft import SFT
from align.batches import TokenBatch
from align.callbacks.health import Health, Monitor, Warned
from align.callbacks.health_checks import (
    DEFAULT_CHECKS,
    EntropyCollapse,
    EOSFalling,
    Finding,
    HealthCheck,
    History,
    KLJump,
    KLRunaway,
    Reading,
    RewardHacking,
)
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import load_network
from align.model.config import GPTConfig
from align.model.gpt import GPT

Series = dict[str, list[float]]


def warned(series: Series, *checks: HealthCheck, quiet_steps: int = 100) -> list[tuple[int, Warned]]:
    """What is reported when reading i of every series is read at step 10 i."""
    monitor = Monitor(checks or [kind() for kind in DEFAULT_CHECKS], quiet_steps)
    return list(feed(monitor, series))


def feed(monitor: Monitor, series: Series, *, first: int = 0, end: int | None = None) -> Iterator[tuple[int, Warned]]:
    for number in range(first, end or max(map(len, series.values()))):
        metrics = {name: values[number] for name, values in series.items() if number < len(values)}
        for found in monitor.read(10 * number, metrics):
            yield 10 * number, found


def names(series: Series) -> set[str]:
    return {found.check for _, found in warned(series)}


LINE = [float(number) for number in range(12)]
ILL: list[tuple[str, Series]] = [
    ("KLRunaway", {"rollout/kl": [19.0, 20.1]}),
    ("KLRunaway", {"rollout/kl": [2.5, 2.5, 2.5, 4.5, 8.0, 10.1]}),  # 10.1 > 4 x 2.5 and > 20 / 2; KLJump at 8.0
    ("KLJump", {"policy/kl": [0.0, 0.1, 2.2]}),  # 2.1 within 10 steps: more than 0.2 x 10
    ("KLJump", {"policy/kl": [0.0, 5.4]}),
    ("BlindCritic", {"rollout/explained_variance": [0.5] + [-0.01] * 5}),
    ("EntropyCollapse", {"rollout/entropy": [2.0, 1.0, 0.59]}),  # 30% of 2 is 0.6
    ("EqualGroups", {"rollout/equal_groups": [0.0, 0.51]}),
    ("SamplerGap", {"rollout/logprob_gap_mean": [0.02, 0.11]}),
    (
        "LogprobsFalling",
        {"train/logprob_chosen": [-30.0] * 5 + [-51.0] * 5, "train/logprob_rejected": [-40.0] * 5 + [-90.0] * 5},
    ),
    ("MarginRunaway", {"train/margin": [0.0, 10.1]}),
    ("MarginRunaway", {"val/margin": [0.0, 22.5]}),
    ("LengthDrift", {"rollout/length": [30.0, 61.0]}),
    ("LengthDrift", {"policy/length": [30.0, 14.0]}),
    ("EOSFalling", {"rollout/eos_rate": [0.95, 0.74]}),
    ("RewardHacking", {"rollout/reward": LINE, "rollout/gold": [-v for v in LINE]}),
    ("RewardHacking", {"rollout/reward": LINE, "policy/reward": [5 - v / 100 for v in LINE]}),
]
HEALTHY: list[Series] = [
    {"rollout/kl": [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0]},
    {"rollout/kl": [0.01, 0.1, 1.0, 2.0, 3.0, 4.9]},  # grows 490-fold, below half of the budget
    {"policy/kl": [0.0, 2.0]},  # 0.2 nats per step
    {"rollout/explained_variance": [-1.0, -0.5, -0.5, -0.1, 0.0, -0.1]},
    {"rollout/entropy": [2.0, 0.61]},
    {"rollout/equal_groups": [0.5, 0.5]},
    {"rollout/logprob_gap_mean": [0.02, 0.1], "rollout/logprob_gap": [3.0, 5.0]},
    {"train/logprob_chosen": [-30.0, *[-31.0] * 9], "train/logprob_rejected": [-40.0, *[-300.0] * 9]},
    {"train/logprob_chosen": [-30.0, -200.0, *[-31.0] * 9], "train/logprob_rejected": [-40.0, *[-300.0] * 10]},
    {"train/logprob_chosen": [-60.0] * 8},
    {"train/margin": [0.0, 10.0], "val/margin": [-1.0, 9.9]},
    {"rollout/length": [30.0, 60.0, 15.0]},
    {"rollout/eos_rate": [0.95, 0.76]},
    {"rollout/reward": LINE, "rollout/gold": LINE},
    {"rollout/reward": [-v for v in LINE], "rollout/gold": [-v for v in LINE]},
    {"rollout/reward": LINE[:7], "rollout/gold": [-v for v in LINE[:7]]},  # shorter than the window
    {"rollout/reward": [1.0] * 12, "rollout/gold": [-v for v in LINE]},
    {"train/loss": [1e9], "val/loss": [1e9], "lr-AdamW/pg1": [0.0]},
]


@pytest.mark.parametrize(("check", "series"), ILL)
def test_what_goes_wrong_is_named(check: str, series: Series):
    kind = next(kind for kind in DEFAULT_CHECKS if kind.__name__ == check)
    assert check in names(series)
    (_, found), *_ = warned(series, kind())
    assert found.metric in series
    assert "\n" not in found.message


@pytest.mark.parametrize("series", HEALTHY)
def test_a_healthy_run_has_no_warning(series: Series):
    assert names(series) == set()


def test_each_series_above_triggers_one_check_alone():
    """Except for the growing KL, whose last steps are a jump too."""
    found = [names(series) for _, series in ILL]
    assert [len(checks) for checks in found].count(1) == len(ILL) - 1


def test_a_warning_has_the_value_and_the_threshold():
    ((step, found),) = warned({"rollout/kl": [19.0, 20.1]}, KLRunaway())
    assert (step, found.metric, found.value, found.threshold) == (10, "rollout/kl", 20.1, 20.0)
    assert "20.1" in found.message


def test_a_jump_is_measured_per_optimizer_step():
    """From 0 at step 0 to 5.4: 0.54 nats per step if read after 10 steps, 0.05 if read after 100."""
    check, metric = KLJump(), "policy/kl"
    finding = check.find(metric, {metric: [Reading(10, 5.4)]})
    assert finding is not None
    assert (finding.value, finding.threshold) == (5.4, 2.0)
    assert check.find(metric, {metric: [Reading(100, 5.4)]}) is None
    assert check.find(metric, {metric: [Reading(0, 5.4)]}) is None
    assert KLJump(per_step=0.05).find(metric, {metric: [Reading(100, 5.4)]}) is not None


def test_noise_is_not_hacking():
    """500 rewards and golds without a trend: two independent correlations beyond 0.7 over 8 readings are rare."""
    rng = random.Random(0)
    noise = {name: [rng.gauss(0, 1) for _ in range(500)] for name in ("rollout/reward", "policy/reward")}
    assert len(warned(noise, quiet_steps=1)) <= 5


def test_a_warning_is_repeated_after_quiet_steps_only():
    """KL above the budget at steps 0, 10, ... 290: reported at 0, 100 and 200; the other metric has its own clock."""
    found = warned({"rollout/kl": [30.0] * 30, "policy/kl": [0.0] * 5 + [30.0]}, KLRunaway())
    assert [step for step, of in found if of.metric == "rollout/kl"] == [0, 100, 200]
    assert [step for step, of in found if of.metric == "policy/kl"] == [50]


@pytest.mark.parametrize(("check", "series"), ILL)
@pytest.mark.parametrize("end", [1, 3, 7])
def test_a_resumed_monitor_finds_the_same(check: str, series: Series, end: int):
    before, after = (Monitor([kind() for kind in DEFAULT_CHECKS], 100) for _ in range(2))
    end = min(end, max(map(len, series.values())))
    found = list(feed(before, series, end=end))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert found + list(feed(after, series, first=end)) == warned(series)


def test_long_runs_keep_their_first_and_their_latest_readings():
    monitor = Monitor([EOSFalling()], 100)
    for step in range(2_000):
        monitor.read(step, {"rollout/eos_rate": 1 - step / 10_000})
    kept = [reading.step for reading in monitor.history["rollout/eos_rate"]]
    assert kept == [*range(100), *range(1_000, 2_000)]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (KLRunaway, "budget", 0),
        (KLRunaway, "growth", 1),
        (KLJump, "per_step", 0.0),
        (EntropyCollapse, "share", 2),
        (RewardHacking, "window", 2),
        (RewardHacking, "trend", 1.0),
    ],
)
def test_impossible_thresholds_are_named(kind: type[HealthCheck], name: str, value: float):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{name} is {value}: "):
        kind(**{name: value})


def test_the_later_of_two_checks_of_a_class_counts():
    assert warned({"rollout/kl": [25.0]}, KLRunaway(), KLRunaway(budget=30)) == []
    assert Monitor([KLRunaway(), EOSFalling(), KLRunaway(budget=30)], 1).checks == (KLRunaway(budget=30), EOSFalling())


def test_a_check_of_what_is_never_read_is_refused():
    @dataclass(frozen=True)
    class Wrong(HealthCheck):
        metrics = ("loss",)

        def find(self, metric: str, history: History) -> Finding | None:
            return None

    with pytest.raises(ValueError, match="Wrong.*'loss'"):
        Monitor([Wrong()], 100)
    with pytest.raises(ValueError, match="quiet_steps is 0"):
        Health(quiet_steps=0)


# With a Trainer.


class Toy(SFT):
    """SFT of a toy network whose step can be poisoned, and that logs what a test gives it."""

    def __init__(self, poison: str = "", at: int = 5) -> None:
        network = GPT(GPTConfig(vocab_size=11, layers=1, heads=2, width=16, context=8))
        network.initialise(0)
        super().__init__(network=network)
        self.poison, self.at = poison, at

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step >= self.at:
            weight = self.network.output_weight
            if self.poison == "gradient":
                loss = loss + (weight * 0).sum().sqrt()  # worth 0, its gradient is 0 x infinity
            if self.poison == "metric":
                self.log("train/logprob_gap", float("inf"))
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.poison == "weight" and self.trainer.global_step >= self.at:
            self.network.output_weight.data[3, 3] = float("nan")


def batches(count: int) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 11, (2, 8), generator=generator) for _ in range(count)]
    full = torch.ones(2, 8, dtype=torch.bool)
    return DataLoader(
        [TokenBatch(ids, full, None, None, torch.ones(2, dtype=torch.long)) for ids in rows], batch_size=None
    )


def fit(
    run: Path,
    stage: SFT,
    *,
    steps: int = 12,
    every: int = 1,
    epoch: int | None = None,
    health: Health | None = None,
    **kwargs,
) -> pl.Trainer:
    checkpoint = pl.callbacks.ModelCheckpoint(
        dirpath=run / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        default_root_dir=run,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        gradient_clip_val=1.0,
        callbacks=[health or Health(), ModelDirectory(), checkpoint],
    )
    trainer.fit(stage, batches(epoch or steps), batches(1), **kwargs)
    return trainer


def told(run: Path) -> list[dict]:
    file = run / "health.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.parametrize(
    ("poison", "at", "last", "metric", "value", "step"),
    [
        ("gradient", 5, 5, "gradient norm", "nan", 5),
        ("weight", 4, 4, "state_dict.network.model.embed_tokens.weight", "nan", 5),
        ("metric", 5, 5, "train/logprob_gap", "inf", 6),
    ],
)
def test_nothing_that_is_not_finite_is_ever_saved(
    tmp_path: Path, poison: str, at: int, last: int, metric: str, value: str, step: int
):
    """Poisoned in the middle with a checkpoint after every step: the newest one is of the last finite step."""
    earlier = tmp_path / "model"
    fit(tmp_path, Toy(), steps=2)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    with pytest.raises(FloatingPointError, match=naming(metric, step)) as caught:
        fit(tmp_path, Toy(poison, at))
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == last
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint["state_dict"].values())
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    (line,) = told(tmp_path)
    assert (line["check"], line["metric"], line["value"], line["step"]) == ("nonfinite", metric, value, step)
    assert line["message"] == str(caught.value)
    fit(tmp_path, Toy(), ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert all(bool(p.isfinite().all()) for p in load_network(earlier).parameters())


def test_a_nan_that_first_shows_after_the_last_step_does_not_reach_the_model_directory(tmp_path: Path):
    class Late(Toy):
        def on_train_epoch_end(self) -> None:
            self.network.output_weight.data[0, 0] = math.nan

    with pytest.raises(FloatingPointError, match=naming("network.model.embed_tokens.weight")):
        fit(tmp_path, Late())
    assert bool(load_network(tmp_path / "model").output_weight.isfinite().all())


def test_warnings_are_written_and_a_resumed_run_keeps_its_readings(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A KL above its budget from the start, read at the ends of epochs of 4 steps: reported at step 4 alone.

    The second run resumes at step 8 with the readings and warnings; a fresh run begins without warnings.
    """

    class Runaway(Toy):
        def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
            self.log("rollout/kl", 30.0)
            return super().training_step(batch, batch_idx)

    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, Runaway(), steps=8, every=8, epoch=4, health=Health([KLRunaway()]))
    assert [record.message for record in caplog.records if "health:" in record.message] == [
        "health: step 4: " + told(tmp_path)[0]["message"]
    ]
    (line,) = told(tmp_path)
    assert (line["step"], line["check"], line["value"], line["threshold"]) == (4, "KLRunaway", 30.0, 20.0)
    health = Health([KLRunaway()])
    fit(tmp_path, Runaway(), steps=12, epoch=4, health=health, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert told(tmp_path) == [line]
    assert health.monitor.history["rollout/kl"][0] == Reading(4, 30.0)
    fit(tmp_path, Toy(), steps=2)
    assert told(tmp_path) == []


def test_an_infinite_perplexity_is_forgiven(tmp_path: Path):
    class Early(Toy):
        def on_validation_epoch_end(self) -> None:
            self.log_dict({"val/loss": 100.0, "val/perplexity": math.inf})

    assert fit(tmp_path, Early(), steps=2).global_step == 2
