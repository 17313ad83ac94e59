"""The ablations compare variants of equal size and equal data, and their tables have the numbers of the runs."""

import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from align.model import GPT, GPTConfig
from align.model.meta import built_without_memory
from align.pipeline.stages import Stage, read_pipeline

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes/ablations"
NAMES = ("norm_placement", "positions", "feed_forward", "norm", "optimizer", "vocabulary")
BASE = yaml.safe_load((FOLDER / "pretrain.yaml").read_text())["model"]["init_args"]
GPT_FLAG = "--model.init_args.gpt."
COLUMNS = ("epoch", "step", "train/loss", "val/bits_per_byte", "val/loss")


def stages_of(name: str) -> list[Stage]:
    return list(read_pipeline(FOLDER / f"{name}.yaml", out="out", seed=0, assignments=[]).stages)


def shape_of(stage: Stage) -> dict[str, Any]:
    """The network's settings: the recipe's, changed by the stage."""
    flags = [word.removeprefix(GPT_FLAG).split("=") for word in stage.arguments if word.startswith(GPT_FLAG)]
    return BASE["gpt"] | {key: yaml.safe_load(value) for key, value in flags}


def parameters(shape: dict[str, Any]) -> int:
    with built_without_memory():
        return GPT(GPTConfig(**shape)).num_parameters()


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ablations

    yield ablations
    sys.modules.pop("ablations")


def test_every_question_has_a_pipeline(ablations):
    found = {path.stem for path in FOLDER.glob("*.yaml")} - {"pipeline", "pretrain"}
    assert found == {*NAMES} == {*ablations.ABLATIONS} - {"raw_and_clean"}  # which stands in recipes/corpus


@pytest.mark.parametrize("name", NAMES)
def test_variants_have_equal_parameters_and_tokens_in_three_seeds(name: str, ablations):
    """Tokens: steps, batch size, context and packing are the recipe's. Parameters differ by at most 1%."""
    trained = [stage for stage in stages_of(name) if stage.is_training]
    counts = [parameters(shape_of(stage)) for stage in trained]
    assert max(counts) <= 1.01 * min(counts)
    for stage in trained:
        keys = {word.partition("=")[0] for word in stage.arguments}
        assert not {key for key in keys if key.startswith(("--data.", "--trainer."))} - {
            "--trainer.default_root_dir",
            "--data.init_args.tokenizer",
        }
    folders = {stage.writes.parent.relative_to("out") for stage in trained}
    variants = ablations.ABLATIONS[name].variants
    assert folders == {Path(one.folder, f"seed{seed}") for one in variants for seed in (0, 1, 2)}
    assert all(f"--seed_everything={stage.folder.name.removeprefix('seed')}" in stage.arguments for stage in trained)


def test_parameters_by_hand():
    """Width D = 128, 4 blocks of 4 D^2 = 65,536 in attention, 3 x 128 x 352 = 135,168 in SwiGLU and 256 in norms.

    4 x 200,960, embedding and output matrix 2 x 768 x 128 = 196,608 and the last norm's 128 are 1,000,576. Learned
    positions have 192 x 128 = 24,576, which is 4 x 3 x 128 x (352 - 336).
    """
    assert parameters(BASE["gpt"]) == 1_000_576
    assert parameters(BASE["gpt"] | {"positions": "learned", "context": 192, "ff_width": 336}) == 1_000_576
    assert parameters(BASE["gpt"] | {"feed_forward": "gelu", "ff_width": 528}) == 1_000_576


def test_pipelines_share_what_they_have_in_common():
    """A stage of one name is the same everywhere, so that in one folder it runs once; its record has its name."""
    known: dict[str, Stage] = {}
    for name in ("pipeline", *NAMES):
        for stage in stages_of(name):
            assert known.setdefault(stage.name, stage) == stage
    assert [stage.name for stage in stages_of("pipeline")][:3] == ["data", "tokenizer", "baseline-seed=0"]
    owners = {stage.writes: stage.name for stage in known.values()}
    assert len(owners) == len(known)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("norm_placement", "norm_placement-placement=post-warmup=0-seed=1"),
        ("positions", "learned-seed=1"),
        ("feed_forward", "gelu-seed=1"),
        ("norm", "layernorm-seed=1"),
        ("optimizer", "muon-lr=0.006-seed=1"),
        ("vocabulary", "vocabulary_1024-seed=1"),
    ],
)
def test_a_variant_of_each_is_a_command_line_that_fit_reads(name: str, stage: str):
    from align.cli.lightning import make_cli

    chosen = next(one for one in stages_of(name) if one.name == stage)
    config = make_cli(list(chosen.arguments), parse_only=True).config
    assert Path(config.trainer.default_root_dir) / "model" == chosen.writes
    assert config.seed_everything == config.data.init_args.seed == 1
    given = (*config.data.init_args.train, *config.data.init_args.validation, config.data.init_args.tokenizer)
    assert {Path(file) for file in given} == {*chosen.reads}
    gpt = config.model.init_args.gpt
    assert {key: gpt[key] for key in shape_of(chosen)} == shape_of(chosen)
    if name == "optimizer":
        assert (config.model.init_args.optimizer.matrices, config.model.init_args.optimizer.lr) == ("muon", 0.006)
    if name == "norm_placement":
        assert config.model.init_args.schedule.warmup_steps == 0


def test_models_are_validated_on_rows_twice_as_long(ablations):
    """By their own validation text; networks must have positions for it, which the learned ones have not."""
    from align.cli.lightning import make_cli

    stages = stages_of("positions")
    trained = {stage.writes: shape_of(stage) for stage in stages if stage.is_training}
    longer = [stage for stage in stages if stage.command == ("validate",)]
    assert {stage.writes for stage in longer} == {
        Path(f"out/longer/{folder}/seed{seed}/validate/metrics.csv")
        for folder, seed in itertools.product(ablations.ABLATIONS["positions"].longer, (0, 1, 2))
    }
    config = make_cli(list(longer[-1].arguments), verb="validate", parse_only=True).config
    assert config.model.init_args.gpt is None
    assert Path(config.trainer.default_root_dir) == longer[-1].writes.parents[1]
    assert config.data.init_args.context == 384
    for stage in longer:
        (model,) = {Path(word.partition("=")[2]) for word in stage.arguments if "init_from" in word}
        assert model in stage.reads
        assert trained[model]["context"] == 384
    assert trained[Path("out/learned/seed0/model")]["context"] == 192


SHAPE = {"vocab_size": 300, "layers": 1, "heads": 2, "width": 16, "ff_width": 32, "context": 40}


def write_run(folder: Path, bits: list[float], *, shape: dict[str, Any] = SHAPE, tokens: float = 600.0):
    """A run with validations before training and after 50 and 100 steps; the loss is twice the bits per byte."""
    (folder / "model").mkdir(parents=True)
    manifest = {"recipe": {"model": {"init_args": {"gpt": shape}}}, "cost": {"tokens_trained": tokens}}
    (folder / "model/align.json").write_text(json.dumps(manifest))
    rows = [(0, step, "", value, 2 * value) for step, value in zip((0, 49, 99), bits, strict=True)]
    write_rows(folder / "metrics.csv", [(0, 0, 5.0, "", ""), *rows, (0, 99, 2.0, "", "")])


def write_rows(file: Path, rows: list[tuple[Any, ...]]):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])


def write_variant(root: Path, folder: str, ends: tuple[float, float, float], **settings: Any):
    for seed, end in enumerate(ends):
        write_run(root / folder / f"seed{seed}", [3.0, end + 0.5, end], **settings)


def test_the_interval_by_hand(ablations):
    """1, 2, 3 has s = 1; t(0.975, 2) = 4.302653, so half is 4.302653 / sqrt(3) = 2.484138."""
    mean, half = ablations.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, half) == (2.0, pytest.approx(2.484138, abs=1e-6))


def test_a_table_and_a_figure_from_runs(tmp_path: Path, ablations, monkeypatch, capsys):
    """SwiGLU ends at 1, 1.1, 1.2 (s = 0.1, half 0.2484), GELU 0.1 above it in every seed: 0.1 exactly.

    The tiny network has two matrices of 300 x 16, 4 x 256 of attention, 3 x 512 of feed-forward, 3 x 16 of norms, and a
    tied output: 4,800 + 1,024 + 1,536 + 48 = 7,408. GELU's two matrices of width 48 are as many.
    """
    write_variant(tmp_path, "baseline", (1.0, 1.1, 1.2))
    write_variant(tmp_path, "gelu", (1.1, 1.2, 1.3), shape=SHAPE | {"feed_forward": "gelu", "ff_width": 48})
    out = tmp_path / "figures"
    monkeypatch.setattr("sys.argv", ["ablations.py", str(tmp_path), "--out", str(out)])
    ablations.main()
    shown = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.out.splitlines() if line[:1] == "|"]
    assert rows[0] == ["variant", "parameters", "tokens", "nats per token", "bits per byte", "difference"]
    assert rows[2] == ["SwiGLU", "7,408", "600", "2.2000 ± 0.4968", "1.1000 ± 0.2484", ""]
    assert rows[3] == ["GELU", "7,408", "600", "2.4000 ± 0.4968", "1.2000 ± 0.2484", "+0.1000 ± 0.0000"]
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == [
        name for name in ablations.ABLATIONS if name != "feed_forward"
    ]
    assert [path.name for path in out.iterdir()] == ["feed_forward.svg"]


def test_curves_begin_before_training(tmp_path: Path, ablations):
    """The validation before training has step 0, the others the index of the step before them."""
    write_variant(tmp_path, "baseline", (1.0, 1.1, 1.2))
    runs = ablations.read(tmp_path, ablations.Variant("RoPE", "baseline", 0), longer=False)
    assert runs.steps.tolist() == [0, 50, 100]
    assert runs.bits[1].tolist() == [3.0, 1.6, 1.1]
    assert runs.longer is None


def test_positions_show_longer_rows_where_there_are_such_positions(tmp_path: Path, ablations):
    """By hand: 2, 2.1, 2.2 on longer rows: 2.1, half 0.2484."""
    for folder in ("baseline", "learned", "sinusoidal"):
        write_variant(tmp_path, folder, (1.0, 1.1, 1.2))
        for seed in range(3):
            file = tmp_path / f"longer/{folder}/seed{seed}/validate/metrics.csv"
            write_rows(file, [(0, 0, "", 2 + seed / 10, 5.0)])
    ablation = ablations.ABLATIONS["positions"]
    runs = [ablations.read(tmp_path, one, longer=one.folder in ablation.longer) for one in ablation.variants]
    last = [line.split("|")[-2].strip() for line in ablations.table(ablation, runs).splitlines()]
    assert last[2:] == ["2.1000 ± 0.2484", "none: no such positions", "2.1000 ± 0.2484"]


def test_tokenizers_are_not_compared_by_the_loss_per_token(tmp_path: Path, ablations):
    ablation = ablations.ABLATIONS["vocabulary"]
    for one in ablation.variants:
        write_variant(tmp_path, one.folder, (1.0, 1.1, 1.2))
    runs = [ablations.read(tmp_path, one, longer=False) for one in ablation.variants]
    assert "nats" not in ablations.table(ablation, runs)


@pytest.mark.parametrize(
    ("field", "settings"),
    [("parameters", {"shape": SHAPE | {"ff_width": 34}}), ("tokens", {"tokens": 610.0})],
)
def test_variants_that_do_not_match_are_refused(tmp_path: Path, ablations, field: str, settings: dict[str, Any]):
    """34 instead of 32 columns are 96 more of 7,408 parameters, 1.3%; 610 tokens are 1.7% more than 600."""
    write_variant(tmp_path, "baseline", (1.0, 1.1, 1.2))
    write_variant(tmp_path, "layernorm", (1.0, 1.1, 1.2), **settings)
    runs = [ablations.read(tmp_path, one, longer=False) for one in ablations.ABLATIONS["norm"].variants]
    with pytest.raises(SystemExit, match=f"norm: {field}"):
        ablations.check_matched("norm", runs)


def test_seeds_that_do_not_match_are_refused(tmp_path: Path, ablations):
    write_variant(tmp_path, "baseline", (1.0, 1.1, 1.2))
    (tmp_path / "baseline/seed2/model/align.json").unlink()
    (tmp_path / "baseline/seed2/model").rmdir()
    (tmp_path / "baseline/seed2/metrics.csv").unlink()
    write_run(tmp_path / "baseline/seed2", [3.0, 2.0, 1.0], tokens=500.0)
    with pytest.raises(SystemExit, match="baseline"):
        ablations.read(tmp_path, ablations.Variant("RMSNorm", "baseline", 0), longer=False)
