"""Each check on a series of metrics whose right answer is known, firing and silent; and NaN drills on real stages."""

import json
import math
import random
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from naming import naming
from torch.utils.data import DataLoader

from align.algorithms.sft import SFT
from align.batches import TokenBatch
from align.callbacks.health import Finding, Health, HealthConfig, Watch
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import load_network
from align.model.config import GPTConfig
from align.model.gpt import GPT

Series = dict[str, list[float]]


def findings(series: Series, config: HealthConfig | None = None) -> list[tuple[int, Finding]]:
    """What is found when reading i of every series is read at step 10 i."""
    watch = Watch(config or HealthConfig())
    length = max(map(len, series.values()))
    found = []
    for number in range(length):
        metrics = {name: values[number] for name, values in series.items() if number < len(values)}
        found += [(10 * number, finding) for finding in watch.read(10 * number, metrics)]
    return found


def names(series: Series, config: HealthConfig | None = None) -> set[str]:
    return {finding.check for _, finding in findings(series, config)}


LINE = [float(number) for number in range(12)]
ILL: list[tuple[str, Series]] = [
    ("kl_runaway", {"rollout/kl": [1.0, 20.1]}),
    ("kl_runaway", {"policy/kl": [25.0]}),
    ("kl_runaway", {"rollout/kl": [2.5, 2.5, 2.5, 2.5, 2.5, 10.1]}),  # 10.1 > 4 x 2.5 and > 20 / 2
    ("critic_blind", {"rollout/explained_variance": [0.5] + [-0.01] * 5}),
    ("entropy_collapse", {"rollout/entropy": [2.0, 1.0, 0.59]}),  # 30% of 2 is 0.6
    ("equal_groups", {"rollout/equal_groups": [0.0, 0.51]}),
    (
        "logprobs_falling",
        {"train/logprob_chosen": [-30.0] * 5 + [-51.0] * 5, "train/logprob_rejected": [-40.0] * 5 + [-90.0] * 5},
    ),
    ("length_drift", {"rollout/length": [30.0, 61.0]}),
    ("length_drift", {"policy/length": [30.0, 14.0]}),
    ("eos_falling", {"rollout/eos_rate": [0.95, 0.74]}),
    ("reward_hacking", {"rollout/reward": LINE, "rollout/gold": [-v for v in LINE]}),
    ("reward_hacking", {"rollout/reward": LINE, "policy/reward": [5 - v / 100 for v in LINE]}),
]
WELL: list[Series] = [
    {"rollout/kl": [0.0, 3.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]},
    {"rollout/kl": [0.01, 0.1, 1.0, 2.0, 3.0, 9.9]},  # grows 990-fold, below half of the budget
    {"policy/kl": [0.0, 6.4]},  # too few readings for a growth
    {"rollout/explained_variance": [-1.0, -0.5, -0.5, -0.1, 0.0, -0.1]},
    {"rollout/entropy": [2.0, 0.61]},
    {"rollout/equal_groups": [0.5, 0.5]},
    {"train/logprob_chosen": [-30.0, *[-31.0] * 9], "train/logprob_rejected": [-40.0, *[-300.0] * 9]},
    {"train/logprob_chosen": [-30.0, -200.0, *[-31.0] * 9], "train/logprob_rejected": [-40.0, *[-300.0] * 10]},
    {"train/logprob_chosen": [-60.0] * 8},
    {"rollout/length": [30.0, 60.0, 15.0]},
    {"rollout/eos_rate": [0.95, 0.76]},
    {"rollout/reward": LINE, "rollout/gold": LINE},
    {"rollout/reward": [-v for v in LINE], "rollout/gold": [-v for v in LINE]},
    {"rollout/reward": LINE[:7], "rollout/gold": [-v for v in LINE[:7]]},  # shorter than the window
    {"rollout/reward": [1.0] * 12, "rollout/gold": [-v for v in LINE]},
    {"train/loss": [1e9], "val/loss": [1e9], "lr-AdamW/pg1": [0.0]},
]


@pytest.mark.parametrize(("check", "series"), ILL)
def test_an_ill_run_is_named(check: str, series: Series):
    assert names(series) == {check}
    finding = findings(series)[0][1]
    assert finding.metric in series
    assert finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize("series", WELL)
def test_a_well_run_is_left_in_peace(series: Series):
    assert names(series) == set()


def test_the_number_and_the_threshold_stand_in_the_line():
    ((step, finding),) = findings({"rollout/kl": [1.0, 20.1]})
    assert (step, finding.value, finding.threshold) == (10, 20.1, 20.0)
    assert re.search(naming("rollout/kl", 20.1, "kl_budget", 20), finding.message)


def test_noise_is_not_hacking():
    """500 rewards and golds without a trend: two independent correlations beyond 0.7 over 8 readings are rare."""
    rng = random.Random(0)
    noise = {name: [rng.gauss(0, 1) for _ in range(500)] for name in ("rollout/reward", "policy/reward")}
    assert len(findings(noise, HealthConfig(quiet_steps=1))) <= 5


def test_a_warning_is_repeated_after_quiet_steps_only():
    """KL above the budget at steps 0, 10, ... 290: said at 0, 100 and 200; the other metric has its own clock."""
    found = findings({"rollout/kl": [30.0] * 30, "policy/kl": [0.0] * 5 + [30.0]})
    assert [step for step, finding in found if finding.metric == "rollout/kl"] == [0, 100, 200]
    assert [step for step, finding in found if finding.metric == "policy/kl"] == [50]


@pytest.mark.parametrize(("check", "series"), ILL)
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_resumed_watch_finds_the_same(check: str, series: Series, cut: int):
    whole = findings(series)
    first, found = Watch(HealthConfig()), []
    for number in range(max(map(len, series.values()))):
        if number == cut:
            state = json.loads(json.dumps(first.state_dict()))
            first = Watch(HealthConfig())
            first.load_state_dict(state)
        metrics = {name: values[number] for name, values in series.items() if number < len(values)}
        found += [(10 * number, finding) for finding in first.read(10 * number, metrics)]
    assert found == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_budget", 0), ("kl_growth", 1), ("entropy_share", 2), ("hacking_window", 2), ("hacking_trend", 1.0)],
)
def test_impossible_settings_are_named(name: str, value: float):
    with pytest.raises(ValueError, match=naming(f"health.settings.{name}", value)):
        HealthConfig(**{name: value})


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
    run: Path, stage: SFT, *, steps: int = 12, every: int = 1, health: Health | None = None, **kwargs
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
    trainer.fit(stage, batches(steps), batches(1), **kwargs)
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


def test_findings_are_written_and_a_resumed_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A KL above its budget from the start, read at each epoch's end: said at step 4, then after 100 steps only.

    The second run resumes at step 4 with what was read and said; a fresh run begins without findings.
    """

    class Runaway(Toy):
        def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
            self.log("rollout/kl", 30.0)
            return super().training_step(batch, batch_idx)

    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, Runaway(), steps=4, every=3)
    (line,) = told(tmp_path)
    (record,) = (record for record in caplog.records if line["message"] in record.message)
    assert re.search(naming(4), record.message.replace(line["message"], ""))
    assert (line["step"], line["check"], line["value"], line["threshold"]) == (4, "kl_runaway", 30.0, 20.0)
    health = Health()
    fit(tmp_path, Runaway(), steps=8, health=health, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert len(told(tmp_path)) == 1
    assert health.watch.recent("rollout/kl", 5)[0] == 30.0
    fit(tmp_path, Toy(), steps=2)
    assert told(tmp_path) == []


def test_an_infinite_perplexity_is_forgiven(tmp_path: Path):
    class Early(Toy):
        def on_validation_epoch_end(self) -> None:
            self.log_dict({"val/loss": 100.0, "val/perplexity": math.inf})

    assert fit(tmp_path, Early(), steps=2).global_step == 2
