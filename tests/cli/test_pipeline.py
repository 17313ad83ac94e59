import json
from pathlib import Path

import pytest
from naming import error_line, names

from align.cli import main
from align.io.manifest import write_manifest
from align.pipeline.recipe_error import RecipeError
from align.pipeline.runner import run_stage
from align.pipeline.stage_record import StageRecord, content_hash
from align.pipeline.stages import read_pipeline

PIPELINE = """
variables: {{count: 3, size: null}}
stages:
  data:
    command: sandbox
    arguments: {{out: "${{run}}/data", seed: "${{seed}}", pretrain_documents: "${{count}}", {small}}}
    writes: ${{run}}/data
  more:
    command: sandbox
    arguments: {{out: "${{run}}/more", pretrain_documents: 2, {small}}}
    reads: ["${{run}}/data/pretrain.jsonl"]
    writes: ${{run}}/more
"""
_SIZES = ("pretrain_val_documents", "sft_chats", "sft_val_chats", "preference_pairs", "preference_val_pairs", "prompts")
SMALL = ", ".join(f"{name}: 1" for name in _SIZES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes" / "small"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(PIPELINE.format(small=SMALL))
    return folder


def _run(folder: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> dict[str, dict]:
    out = folder.parent / "runs" if folder.suffix else folder / "runs"
    assert main(["run", str(folder), "--out", str(out), "--set", "size=1", "--json", *extra]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all({"name", "status", "seconds", "output"} <= set(line) for line in lines)
    return {line["name"]: line for line in lines}


def _status(folder: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> dict[str, str]:
    return {name: line["status"] for name, line in _run(folder, capsys, *extra).items()}


def test_the_second_run_does_nothing_and_says_why(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert _status(folder, capsys) == {"data": "done", "more": "done"}
    assert len((folder / "runs/data/pretrain.jsonl").read_text().splitlines()) == 3
    again = _run(folder, capsys)
    assert {line["status"] for line in again.values()} == {"up-to-date"}
    assert again["data"]["why"]


def test_what_changed_runs_again_and_what_hangs_on_it(folder: Path, capsys: pytest.CaptureFixture[str]):
    _run(folder, capsys)
    assert _status(folder, capsys, "--set", "count=4") == {"data": "done", "more": "done"}
    assert _status(folder, capsys, "--set", "count=4") == {"data": "up-to-date", "more": "up-to-date"}


def test_a_damaged_output_is_made_again(folder: Path, capsys: pytest.CaptureFixture[str]):
    _run(folder, capsys)
    output = folder / "runs/more/pretrain.jsonl"
    whole = output.read_bytes()
    output.write_bytes(whole[:-5])
    assert _status(folder, capsys) == {"data": "up-to-date", "more": "done"}
    assert output.read_bytes() == whole


def test_only_from_and_force(folder: Path, capsys: pytest.CaptureFixture[str]):
    _run(folder, capsys)
    assert _status(folder, capsys, "--only", "more") == {"more": "up-to-date"}
    assert _status(folder, capsys, "--from", "more") == {"more": "done"}
    assert _status(folder, capsys, "--to", "data") == {"data": "up-to-date"}
    assert _status(folder, capsys, "--from", "data", "--to", "data") == {"data": "done"}
    assert _status(folder, capsys, "--force") == {"data": "done", "more": "done"}


def test_an_optional_stage_runs_only_when_it_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = folder / "pipeline.yaml"
    file.write_text(file.read_text().replace("  more:\n", "  more:\n    optional: true\n"))
    assert _status(folder, capsys) == {"data": "done"}
    assert _status(folder, capsys, "--from", "data") == {"data": "done"}
    assert _status(folder, capsys, "--only", "more") == {"more": "done"}
    assert _status(folder, capsys, "--from", "more") == {"more": "done"}
    assert _status(folder, capsys, "--to", "data") == {"data": "up-to-date"}
    assert _status(folder, capsys, "--to", "more") == {"data": "up-to-date", "more": "up-to-date"}


def test_to_runs_what_a_stage_needs(folder: Path, capsys: pytest.CaptureFixture[str]):
    """From an empty folder; --only has nothing to read there."""
    assert main(["run", str(folder), "--out", str(folder / "runs"), "--set", "size=1", "--only", "more"]) == 2
    error_line(capsys, "more", "data/pretrain.jsonl", "stage 'data'", "--to more")
    assert _status(folder, capsys, "--to", "more") == {"data": "done", "more": "done"}


def test_a_variable_that_is_a_path_is_an_input(folder: Path):
    """A path counts by its content; an id, which does not exist here, by its name alone."""
    file = folder / "hub.yaml"
    file.write_text(
        "variables: {model: owner/model, other: null}\n"
        "stages:\n"
        "  a: {command: x, arguments: {texts: [], '-': ['base=${model}']}, reads: [t], writes: '${run}/a'}\n"
        "  b: {command: x, arguments: {texts: ['${run}']}, writes: '${run}/b'}\n"
    )
    for value, inputs in (("owner/model", []), (str(file), [file])):
        given = [f"model={value}", f"other={file}"]
        a, b = read_pipeline(file, out="out", seed=0, assignments=given).stages
        assert list(a.reads) == [Path("t"), *inputs]
        assert a.arguments == (f"base={value}",)
        assert b.reads == ()


def test_data_beside_the_pipeline(folder: Path):
    file = folder / "beside.yaml"
    file.write_text("stages: {a: {command: x, arguments: {texts: ['${folder}/t.jsonl']}, writes: '${run}/a'}}")
    (stage,) = read_pipeline(file, out="out", seed=0, assignments=[]).stages
    assert str(folder / "t.jsonl") in " ".join(stage.arguments)


def test_foreach_makes_a_stage_of_each_combination(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = folder / "again.yaml"
    text = (folder / "pipeline.yaml").read_text().replace("${run}/more", "${run}/more-${a}-${seed}")
    file.write_text(text.replace("  more:\n", "  more:\n    foreach: {a: [x, y], seed: [1, 2]}\n"))
    stages = read_pipeline(file, out="out", seed=0, assignments=["size=1"]).stages
    names = [f"more-a={a}-seed={seed}" for a in "xy" for seed in (1, 2)]
    assert [stage.name for stage in stages] == ["data", *names]
    assert [str(stage.writes) for stage in stages[1:]] == [f"out/more-{a}-{seed}" for a in "xy" for seed in (1, 2)]
    assert list(_status(file, capsys, "--only", "data", names[1])) == ["data", names[1]]
    assert list(_status(file, capsys, "--only", "more")) == names
    assert list(_status(file, capsys, "--from", "more")) == names
    assert list(_status(file, capsys, "--to", "more")) == ["data", *names]
    assert list(_status(file, capsys, "--to", names[1])) == ["data", *names[:2]]


def test_a_missing_input_of_a_later_stage_is_found_before_the_first_starts(folder: Path, capsys):
    """What an earlier stage writes is none; what a stage reads, or a data file that a variable names, is one."""
    file = folder / "late.yaml"
    file.write_text(
        "variables: {texts: owner/texts, part: part.jsonl, other: ''}\n"
        "stages:\n"
        f"  data: {{command: sandbox, arguments: {{out: '${{run}}/data', {SMALL}}}, writes: '${{run}}/data'}}\n"
        "  a: {command: x, arguments: {b: '${texts}', c: 'd/${part}'}, reads: ['${run}/data/e'], writes: '${run}/a'}\n"
        "  b: {command: x, reads: ['${run}/a', '${other}'], writes: '${run}/b'}\n"
    )
    run = folder / "runs"
    for assignment, stage, missing in (("texts=absent.jsonl", "a", "absent.jsonl"), ("other=absent", "b", "absent")):
        assert main(["run", str(file), "--out", str(run), "--set", assignment]) == 2
        error_line(capsys, f"stage {stage!r}", missing)
        assert not (run / "data").exists()


def test_a_failed_stage_stops_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = folder / "pipeline.yaml"
    file.write_text(file.read_text().replace('pretrain_documents: "${count}"', "slip_rate: 2"))
    assert main(["run", str(folder), "--out", str(folder / "runs"), "--set", "size=1", "--json"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["status"] for line in captured.out.splitlines()] == ["failed"]
    assert names(captured.err, "slip_rate", "2.0")


@pytest.mark.parametrize(
    ("edit", "extra", "named"),
    [
        (None, [], ["pipeline.yaml", "--set size"]),
        (None, ["--set", "size"], ["--set size", "NAME=VALUE"]),
        (None, ["--set", "siz=1"], ["pipeline.yaml", "siz", "size"]),
        (None, ["--set", "size=1", "--only", "dta"], ["pipeline.yaml", "dta", "data"]),
        (None, ["--set", "size=1", "--to", "dta"], ["pipeline.yaml", "dta", "data"]),
        (None, ["--set", "size=1", "--from", "more", "--to", "data"], ["--to data", "--from more"]),
        (("reads:", "raeds:"), ["--set", "size=1"], ["pipeline.yaml", "more", "raeds", "reads"]),
        (("  more:", "  more:\n    optional: maybe"), ["--set", "size=1"], ["more", "optional", "maybe"]),
        (("  more:", "  more:\n    foreach: [1]"), ["--set", "size=1"], ["more", "foreach", "[1]"]),
        (("${seed}", "${sed}"), ["--set", "size=1"], ["data", "${sed}", "seed"]),
        (("stages:", "stags:"), ["--set", "size=1"], ["pipeline.yaml", "stages"]),
        (("stages:", "stages: ["), ["--set", "size=1"], ["pipeline.yaml"]),
        (("data/pretrain", "data/pretrian"), ["--set", "size=1"], ["more", "data/pretrian.jsonl"]),
    ],
)
def test_mistakes_are_one_line(folder: Path, capsys, edit, extra: list[str], named: list[str]):
    file = folder / "pipeline.yaml"
    if edit:
        file.write_text(file.read_text().replace(*edit))
    assert main(["run", str(folder), "--out", str(folder / "runs"), *extra]) == 2
    error_line(capsys, "align run", *named)


def test_a_misspelt_folder_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", str(folder.parent / "smal")]) == 2
    error_line(capsys, folder.parent / "smal", "small")


def test_a_recipe_in_place_of_a_pipeline_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sft.yaml"
    file.write_text("model: {class_path: align.algorithms.SFT}\n")
    for verb in ("run", "doctor"):
        assert main([verb, str(file)]) == 2
        error_line(capsys, f"--config {file}")


def test_overlays_come_behind_the_recipe_of_training_stages_and_count_by_their_text(tmp_path: Path):
    """Behind the recipe and before the stage's own settings; a copy changes nothing, another text does."""
    stages = "a: {command: fit, recipe: a.yaml, arguments: {x: null}, writes: '${run}/a/model'}"
    stages += ", b: {command: sandbox, arguments: {out: '${run}'}, writes: '${run}'}"
    (tmp_path / "pipeline.yaml").write_text(f"stages: {{{stages}}}")
    (tmp_path / "a.yaml").write_text("")
    files = [tmp_path / f"{name}.yaml" for name in ("lora", "copy", "other")]
    for file, rank in zip(files, (4, 4, 8), strict=True):
        file.write_text(f"model: {{init_args: {{lora: {{rank: {rank}}}}}}}")

    def read(*overlays: Path):
        return read_pipeline(tmp_path, out="out", seed=7, assignments=[], overlays=overlays).stages

    trained, data = read(files[0], files[2])
    recipes = [f"--config={path}" for path in (tmp_path / "a.yaml", files[0], files[2])]
    assert trained.arguments == (*recipes, "--run=out", "--seed_everything=7", "--x=null")
    assert data.arguments == ("--out=out",)
    plain, lora, copy, other = (read(*overlays)[0].fingerprint() for overlays in ((), *((file,) for file in files)))
    assert lora == copy
    assert len({plain, lora, other}) == 3


def test_a_stage_has_overlays_of_its_own_before_those_of_the_command_line(tmp_path: Path):
    stages = (
        "a: {command: fit, recipe: a.yaml, overlays: [b.yaml, '${name}.yaml'], arguments: {x: 1}, writes: '${run}/a/m'}"
    )
    (tmp_path / "pipeline.yaml").write_text(f"variables: {{name: c}}\nstages: {{{stages}}}")
    for name in "abcd":
        (tmp_path / f"{name}.yaml").write_text("y: 1")
    read = {"out": "out", "seed": 7, "assignments": []}
    (plain,) = read_pipeline(tmp_path, **read).stages
    (stage,) = read_pipeline(tmp_path, **read, overlays=[tmp_path / "d.yaml"]).stages
    recipes = [f"--config={tmp_path}/{name}.yaml" for name in "abcd"]
    assert stage.arguments == (*recipes, "--run=out", "--seed_everything=7", "--x=1")
    assert plain.arguments == (*recipes[:3], "--run=out", "--seed_everything=7", "--x=1")
    before = plain.fingerprint()
    (tmp_path / "c.yaml").write_text("y: 2")
    assert plain.fingerprint() != before


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("command: fit, recipe: a.yaml, overlays: b.yaml", "must be a list"),
        ("command: fit, overlays: [b.yaml]", "no recipe"),
    ],
)
def test_overlays_of_a_stage_are_checked(tmp_path: Path, body: str, match: str):
    (tmp_path / "pipeline.yaml").write_text(f"stages: {{a: {{{body}, writes: '${{run}}/a'}}}}")
    with pytest.raises(RecipeError, match=match):
        read_pipeline(tmp_path, out="out", seed=0, assignments=[])


@pytest.mark.parametrize("overlay", ["none.yaml", "pipeline.yaml"])
def test_an_overlay_without_use_is_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str], overlay: str):
    """One that does not exist, and one for a pipeline that trains nothing."""
    words = ["run", str(folder), "--out", str(folder / "runs"), "--set", "size=1", "--config", str(folder / overlay)]
    assert main(words) == 2
    error_line(capsys, "--config", folder / overlay)


@pytest.mark.parametrize(
    ("text", "named"),
    [("a: [", "YAML"), ("- a", "list"), ("", "NoneType"), ("a: {b: 1, b: 2}", "b"), ("model: null", "model")],
)
def test_an_overlay_that_is_no_recipe_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str], text, named):
    (tmp_path / "pipeline.yaml").write_text("stages: {a: {command: fit, recipe: a.yaml, writes: '${run}/a/model'}}")
    (tmp_path / "a.yaml").write_text("")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    assert main(["run", str(tmp_path), "--out", str(tmp_path / "runs"), "--config", str(overlay)]) == 2
    error_line(capsys, overlay, named)


def test_a_rejected_recipe_costs_nothing(recipes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Checkpoints, metrics and the record of the finished stage stay; without the overlay it is up to date again."""
    out = tmp_path / "runs"
    command = ["run", str(recipes), "--out", str(out), "--only", "data", "tokenizer", "pretrain", "--json"]
    assert main(command) == 0
    folder = out / "pretrain"
    before = {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_step: 3}")
    assert main([*command, "--config", str(overlay)]) == 1
    after = {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before
    capsys.readouterr()
    assert main(command) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["up-to-date"] * 3


def test_a_rejected_resume_keeps_its_own_checkpoints(tmp_path: Path):
    """Files of an older recipe, left aside by a killed run, do not take the place of those it had written since."""
    (tmp_path / "pipeline.yaml").write_text("stages: {a: {command: fit, recipe: a.yaml, writes: '${run}/a/model'}}")
    (tmp_path / "a.yaml").write_text("")
    pipeline = read_pipeline(tmp_path, out=str(tmp_path / "run"), seed=0, assignments=[])
    (stage,) = pipeline.stages
    StageRecord(pipeline.run / ".stages/a.json").begin(stage.fingerprint())
    for name, text in ((".previous", "older"), (".", "newer")):
        (stage.folder / name).mkdir(parents=True, exist_ok=True)
        (stage.folder / name / "metrics.csv").write_text(text)
    lines = []
    outcome = run_stage(stage, pipeline, lambda line: lines.append(line) or 2, force=False)
    assert outcome.status == "failed"
    assert "--ckpt_path=last" in lines[0]
    assert (stage.folder / "metrics.csv").read_text() == "newer"


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--seed", "-1"], ["--seed", -1]), (["--from", "more", "--only", "data"], ["--from", "more", "data"])],
)
def test_settings_that_leave_nothing_to_run(folder: Path, capsys: pytest.CaptureFixture[str], words, named):
    assert main(["run", str(folder), "--out", str(folder / "runs"), "--set", "size=1", *words]) == 2
    error_line(capsys, *named)


def test_recipes_get_run_and_seed(tmp_path: Path):
    (tmp_path / "pipeline.yaml").write_text("stages: {a: {command: fit, recipe: a.yaml, writes: '${run}/a/model'}}")
    (tmp_path / "a.yaml").write_text("")
    stage = read_pipeline(tmp_path, out="out", seed=7, assignments=[]).stages[0]
    assert stage.arguments == (f"--config={tmp_path}/a.yaml", "--run=out", "--seed_everything=7")
    assert stage.is_training
    assert stage.folder == Path("out/a")


def test_a_reward_models_normalisation_is_content_and_its_paths_are_not(tmp_path: Path):
    """A stage that reads the model is run again if its scores change, not if the model was copied."""

    def written(**fields: object) -> str:
        write_manifest(tmp_path, {"stage": "reward", **fields})
        return content_hash(tmp_path)

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = written(reward_mean=0.5, reward_std=1.0)
    assert written(reward_mean=0.5, reward_std=1.0, parent={"directory": "elsewhere", "weights": None}) == first
    assert written(reward_mean=0.6, reward_std=1.0) != first
    assert written(reward_mean=0.5, reward_std=1.1) != first
