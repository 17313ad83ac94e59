"""Every YAML in recipes/ is read by the parser that a run would use, and every pipeline's stages hang together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/*.y*ml"))
PIPELINES = [path for path in RECIPES if path.name == "pipeline.yaml"]
HARDWARE = [path for path in RECIPES if path.parent.name == "hardware"]
ALGORITHMS = [path for path in RECIPES if path.parent.name == "algorithms"]
ENGINES = [path for path in RECIPES if path.parent.name == "engines"]
CORPUS = [ROOT / f"recipes/corpus/{name}.yaml" for name in ("clean", "raw", "web")]  # of `align data clean`
ON_SLURM = ROOT / "recipes/corpus/slurm.yaml"
OVERLAYS = HARDWARE + ALGORITHMS + ENGINES
SWEEPS = [path for path in RECIPES if path.name == "sweep.yaml"]
SEEDS = [path for path in RECIPES if path.name == "seeds.yaml"]
NEEDED = {"engine_seeds": ["python=ENV/bin/python"]}  # variables without a default
FURTHER = [
    path for path in RECIPES if path.name.endswith("_seeds.yaml")
]  # pipelines that share the recipes of a folder
ABLATIONS = [
    path
    for path in RECIPES
    if (path.parent.name == "ablations" and path.stem not in ("pipeline", "pretrain")) or path.stem == "raw_and_clean"
]
STAGES = [
    path
    for path in RECIPES
    if path not in [*PIPELINES, *OVERLAYS, *SWEEPS, *SEEDS, *FURTHER, *ABLATIONS, *CORPUS, ON_SLURM]
]


def _parse(*files: Path) -> object:
    """Parse as ``align fit`` does, without building anything."""
    return _parse_words([word for file in files for word in ("--config", str(file))])


def _parse_words(words: list[str]) -> object:
    from align.cli.lightning import make_cli

    return make_cli(words, parse_only=True).config


def test_there_are_recipes():
    assert len(PIPELINES) >= 3
    assert len(OVERLAYS) >= 2
    assert len(STAGES) >= 4


@pytest.mark.parametrize("path", STAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_stage_recipes_parse(path: Path):
    config = _parse(path)
    assert config.model.class_path.startswith("align.algorithms.")
    assert config.data.class_path.startswith("align.data.")
    assert config.run == f"runs/{path.parent.name}"
    assert config.trainer.default_root_dir == f"runs/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("overlays", [[], [ON_SLURM]], ids=["here", "slurm"])
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_recipes_of_a_corpus_are_read(path: Path, overlays: list[Path]):
    from align.cli.data import read_recipe

    words = [word for file in (path, *overlays) for word in ("--config", str(file))]
    recipe, settings, _ = read_recipe([*words, "--inputs", "raw", "--out", "out"])
    assert type(recipe.executor).__name__ == ("Slurm" if overlays else "Local")
    assert set(recipe.sources) == set(settings["sources"]) == set(yaml.safe_load(path.read_text())["sources"])


def _assert_holds(config: Any, wanted: dict[str, Any]):
    for key, value in wanted.items():
        if isinstance(value, dict):
            _assert_holds(config[key], value)
        elif isinstance(value, list):
            assert len(config[key]) == len(value)
            for ours, theirs in zip(config[key], value, strict=True):
                _assert_holds(ours, theirs)
        else:
            assert config[key] == value, key


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "kto", "ppo"])
@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.stem)
def test_hardware_overlays_parse_over_every_stage(path: Path, stage: str):
    overlay = yaml.safe_load(path.read_text())
    _assert_holds(_parse(ROOT / f"recipes/tiny/{stage}.yaml", path), overlay)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_algorithm_overlays_change_what_they_name_and_nothing_else(path: Path):
    overlay = yaml.safe_load(path.read_text())["model"]["init_args"]
    ours = _parse(ROOT / "recipes/tiny/grpo.yaml", path).model.init_args
    plain = _parse(ROOT / "recipes/tiny/grpo.yaml").model.init_args
    assert ours.estimator.class_path == f"align.objectives.{overlay.pop('estimator')}"
    for name in ("rollout", "scoring", "kl", "update"):
        named = overlay.get(name, {})
        changed = {key for key in vars(plain[name]) if ours[name][key] != plain[name][key]}
        assert changed <= {*named}
        for key in {*named} - {"surrogate", "average"}:
            assert ours[name][key] == named[key]
    for key, value in overlay.get("update", {}).items():
        wanted = {"class_path": value} if isinstance(value, str) else value
        assert ours["update"][key].class_path == f"align.objectives.{wanted['class_path']}"
        _assert_holds(ours["update"][key].get("init_args", {}), wanted.get("init_args", {}))


@pytest.mark.parametrize("path", ENGINES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_engine_overlays_change_the_engine_and_nothing_else(path: Path, stage: str):
    plain, ours = (_parse(ROOT / f"recipes/tiny/{stage}.yaml", *more).model.init_args for more in ((), (path,)))
    changed = [name for name in vars(plain.rollout) if ours.rollout[name] != plain.rollout[name]]
    assert changed == ["engine"]
    assert {**vars(ours), "rollout": 0} == {**vars(plain), "rollout": 0}
    named = yaml.safe_load(path.read_text())["model"]["init_args"]["rollout"]["engine"]["class_path"]
    assert ours.rollout.engine.class_path == f"align.engines.{named}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_says_what_it_is_and_how_to_run_it(path: Path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("align " in line for line in header), "the header comment shows the command"


@pytest.mark.parametrize("path", PIPELINES + FURTHER + ABLATIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_stage_reads_what_an_earlier_one_wrote(path: Path):
    from align.pipeline.stages import read_pipeline

    variables = yaml.safe_load(path.read_text()).get("variables") or {}
    assignments = [f"{name}=given" for name in variables]
    pipeline = read_pipeline(path, out="out", seed=0, assignments=assignments)
    written: list[Path] = [
        Path("given"),
        *path.parent.glob("*.jsonl"),
        *(file for file in CORPUS if file.parent == path.parent),
    ]
    for stage in pipeline.stages:
        for read in stage.reads:
            assert any(read == w or w in read.parents for w in written), f"{stage.name} reads {read}"
        assert stage.recipe is None or stage.recipe in STAGES
        written.append(stage.writes)
    assert len(written) == len({*written}), "no stage writes where another does"


@pytest.mark.parametrize("path", FURTHER, ids=lambda path: path.stem)
def test_stages_that_share_recipes_are_command_lines_that_fit_reads(path: Path):
    """One run of each recipe with its overlays; the loop changes values alone."""
    from align.pipeline.stages import read_pipeline

    stages = read_pipeline(path, out="out", seed=0, assignments=NEEDED.get(path.stem, [])).stages
    for stage in {(stage.recipe, stage.overlays): stage for stage in stages if stage.recipe is not None}.values():
        config = _parse_words(list(stage.arguments))
        assert Path(config.trainer.default_root_dir) / "model" == stage.writes
        given = (*config.data.init_args.train, config.data.init_args.tokenizer)
        assert {Path(file) for file in given} <= {*stage.reads}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_goes_on_from_its_folders_pipeline(path: Path):
    from align.pipeline.stages import read_pipeline

    before = read_pipeline(path.parent, out="out", seed=0, assignments=[]).stages
    written = [stage.writes for stage in before]
    for stage in read_pipeline(path, out="out", seed=0, assignments=[]).stages:
        for read in stage.reads:
            assert any(read == w or w in read.parents or read in w.parents for w in written), f"{stage.name}: {read}"
        if stage.recipe is not None:
            assert stage.recipe in STAGES
            _parse_words(list(stage.arguments))
        written.append(stage.writes)
    assert len(written) == len({*written}), "no run writes where another does"


def test_comparisons_are_command_lines_that_compare_reads():
    """Every model they name is one that a stage writes."""
    from align.cli.compare import CompareSettings
    from align.cli.settings import parse_settings
    from align.pipeline.stages import read_pipeline

    stages = [
        stage
        for path in [ROOT / "recipes/tiny", *SWEEPS, *FURTHER]
        for stage in read_pipeline(path, out="out", seed=0, assignments=NEEDED.get(path.stem, [])).stages
    ]
    written = {stage.writes for stage in stages}
    comparing = [stage for stage in stages if stage.command == ("compare",)]
    assert len(comparing) == 2 + len(FURTHER)
    for stage in comparing:
        options = parse_settings(CompareSettings, "compare", list(stage.arguments))
        assert Path(options.out) / "report.json" == stage.writes
        assert options.judge[0] == "gold=sandbox"
        for model in options.models:
            assert {Path(folder) / "model" for folder in model.partition("=")[2].split(",")} <= written


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.parent.name)
def test_pooled_seeds_are_compared_as_each_seed_was(path: Path):
    """Else the logged responses of the seeds' own comparisons are not those that the pooled one needs."""
    from align.cli.compare import CompareSettings
    from align.cli.settings import parse_settings
    from align.pipeline.stages import Stage, read_pipeline

    def comparisons(file: Path, out: str) -> list[Stage]:
        stages = read_pipeline(file, out=out, seed=0, assignments=["model=given"]).stages
        return [stage for stage in stages if stage.command == ("compare",)]

    seeds = [comparisons(path.parent, f"out/seed{seed}") for seed in range(3)]
    for pooled, *own in zip(comparisons(path, "out"), *seeds, strict=True):
        options = parse_settings(CompareSettings, "compare", list(pooled.arguments))
        each = [parse_settings(CompareSettings, "compare", list(stage.arguments)) for stage in own]
        assert {read for stage in own for read in stage.reads if "data" not in read.parts} <= {*pooled.reads}
        assert options.prompts == each[0].prompts
        for field in (
            "limit",
            "n",
            "seed",
            "temperature",
            "max_new_tokens",
            "batch_size",
            "best_of",
            "texts",
            "metric",
        ):
            assert all(getattr(options, field) == getattr(one, field) for one in each), field
        for field in ("models", "judge"):
            for word, *words in zip(getattr(options, field), *(getattr(one, field) for one in each), strict=True):
                name, _, value = word.partition("=")
                assert {name} == {other.partition("=")[0] for other in words}
                assert value.split(",") == list(dict.fromkeys(other.partition("=")[2] for other in words))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_sampling_stages_are_command_lines_that_generate_reads(path: Path):
    from align.cli.generate import GenerateSettings
    from align.cli.play import PlaySettings
    from align.cli.settings import parse_settings
    from align.pipeline.stages import read_pipeline

    variables = yaml.safe_load(path.read_text()).get("variables") or {}
    assignments = [f"{name}=given" for name, default in variables.items() if default is None]
    pipeline = read_pipeline(path.parent, out="out", seed=0, assignments=assignments)
    sampling = [stage for stage in pipeline.stages if stage.command == ("generate",)]
    comparing = any(stage.command == ("compare",) for stage in pipeline.stages)
    playing = [stage for stage in pipeline.stages if stage.command == ("play",)]
    assert sampling or comparing or playing, "every pipeline ends with something to look at"
    for stage in playing:
        played = parse_settings(PlaySettings, "play", list(stage.arguments))
        assert {Path(played.model), Path(played.prompts)} <= {*stage.reads}
        assert Path(str(played.out)) == stage.writes
    for stage in sampling:
        options = parse_settings(GenerateSettings, "generate", list(stage.arguments))
        assert options.out == str(stage.writes)


def test_preference_stages_are_command_lines_that_preferences_reads():
    """The labels are as noisy as the sandbox's own, and the answers are sampled as the final samples are."""
    from align.cli.preferences import PreferencesSettings
    from align.cli.settings import parse_settings
    from align.pipeline.stages import read_pipeline
    from align.sandbox import SandboxConfig

    stages = read_pipeline(ROOT / "recipes/tiny", out="out", seed=0, assignments=[]).stages
    words = [list(stage.arguments) for stage in stages if stage.command == ("preferences",)]
    options = [parse_settings(PreferencesSettings, "preferences", arguments) for arguments in words]
    assert [stage.out for stage in options] == ["out/preferences/train.jsonl", "out/preferences/val.jsonl"]
    for stage in options:
        assert stage.labels.label_temperature == SandboxConfig().label_temperature
        assert (stage.sampling.temperature, stage.sampling.max_new_tokens) == (1.0, 96)


def test_instructions_run_without_preferences(tmp_path: Path):
    """Who gives instructions and a model alone gets SFT and samples, and nothing that runs then reads pairs."""
    from align.pipeline.stages import read_pipeline

    folder = ROOT / "recipes/instructions"
    assignments = [f"data={tmp_path}", "model=owner/model"]
    stages = read_pipeline(folder, out="out", seed=0, assignments=assignments).stages
    default = [stage for stage in stages if not stage.optional]
    assert [stage.name for stage in default] == ["sft", "samples"]
    assert {str(path) for stage in default for path in stage.reads} == {str(tmp_path), "out/sft/model"}


def test_instructions_hold_out_the_same_fifth_everywhere():
    """The reward model's held-out pairs are DPO's, and PPO's prompts are split by the same settings."""
    configs = [_parse(ROOT / f"recipes/instructions/{name}.yaml") for name in ("reward", "dpo", "ppo")]
    settings = ("val_fraction", "on_bad_record", "context")
    assert len({tuple(config.data.init_args[name] for name in settings) for config in configs}) == 1
    assert [config.data.init_args.format.class_path.split(".")[-1] for config in configs] == ["Alpaca"] * 3
    assert configs[0].data.init_args.val_fraction == 0.2


@pytest.mark.parametrize(
    "path",
    [path for path in STAGES if path.parent.name != "plan"],  # those are planned, and have no data to run on
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_each_stage_recipe_is_in_its_pipeline(path: Path):
    assert f"recipe: {path.name}" in (path.parent / "pipeline.yaml").read_text()
