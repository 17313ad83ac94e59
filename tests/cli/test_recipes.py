import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from naming import names

from align.cli import main
from align.pipeline.recipes import find_configs, find_recipe, shipped_root

ROOT = Path(__file__).resolve().parents[2]
YAMLS = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder without recipes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_names_every_recipe_with_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    rows = capsys.readouterr().out.splitlines()
    folders = {name.split("/")[0] for name in YAMLS}
    # A folder's own row is that of its pipeline.yaml.
    assert len(rows) == len(folders) + len([name for name in YAMLS if not name.endswith("/pipeline.yaml")])
    assert all(len(row.split(maxsplit=1)) == 2 for row in rows)


def test_the_json_list_has_the_paths(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "--json"]) == 0
    folders = json.loads(capsys.readouterr().out)
    tiny = next(folder for folder in folders if folder["name"] == "tiny")
    assert Path(tiny["path"]) == ROOT / "recipes/tiny"
    sft = next(recipe for recipe in tiny["recipes"] if recipe["name"] == "sft.yaml")
    assert Path(sft["path"]) == ROOT / "recipes/tiny/sft.yaml"
    assert (ROOT / "recipes/tiny/sft.yaml").read_text().startswith(f"# {sft['summary'].split(' on ')[0]}")


def test_a_copy_has_the_same_files(elsewhere: Path):
    assert main(["recipes", "copy", "tiny", "mine/tiny"]) == 0
    names = sorted(path.name for path in (ROOT / "recipes/tiny").iterdir())
    assert sorted(path.name for path in (elsewhere / "mine/tiny").iterdir()) == names


@pytest.mark.parametrize("name", ["tiny", "qwen2.5-0.5b"])
def test_a_copy_names_itself_and_a_run_folder_of_its_own(elsewhere: Path, name: str):
    """In settings and header; overlays and other recipes keep their names."""
    assert main(["recipes", "copy", name, "my/copy"]) == 0
    found = {path.name: path.read_text() for path in (elsewhere / "my/copy").glob("*.yaml")}
    assert yaml.safe_load(found["dpo.yaml"])["run"] == "runs/copy"
    for file, text in found.items():
        original = (shipped_root() / name / file).read_text()
        assert text == original.replace(f"recipes/{name}", "my/copy").replace(f"runs/{name}", "runs/copy")
        assert text.count("my/copy") == original.count(f"recipes/{name}")
    assert "my/copy" in found["pipeline.yaml"]


def test_a_copy_never_overwrites(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    (elsewhere / "mine").mkdir()
    assert main(["recipes", "copy", "tiny", "mine"]) == 2
    assert list((elsewhere / "mine").iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine" in line


@pytest.mark.parametrize("args", [["copy", "tiyn", "mine"], ["cpoy", "tiny", "mine"], ["copy", "tiny"]])
def test_a_wrong_command_line_is_one_line(args: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", *args]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny", "recipes/tiny", "recipes/tiny/sweep.yaml", "hardware/gpu.yaml"])
def test_a_missing_recipe_is_the_shipped_one(name: str):
    path, note = find_recipe(Path(name))
    assert path == ROOT / "recipes" / name.removeprefix("recipes/")
    assert note is not None
    assert str(path) in note


def test_the_users_own_recipe_comes_first(elsewhere: Path):
    (elsewhere / "recipes/tiny").mkdir(parents=True)
    assert find_recipe(Path("recipes/tiny")) == (Path("recipes/tiny"), None)
    assert find_recipe(Path("tiny"))[0] == Path("recipes/tiny")
    (elsewhere / "tiny").mkdir()
    assert find_recipe(Path("tiny")) == (Path("tiny"), None)


@pytest.mark.parametrize("name", ["nowhere", "recipes", "../tiny", "/tiny"])
def test_anything_else_stays_as_it_was_given(name: str):
    assert find_recipe(Path(name)) == (Path(name), None)


def test_every_config_of_a_command_line_is_found():
    args = [
        "--config",
        "tiny/sft.yaml",
        "--config=recipes/hardware/cpu.yaml",
        "--trainer.max_steps=1",
        "-c",
        "own.yaml",
    ]
    found, notes = find_configs(args)
    sft, cpu = (str(shipped_root() / name) for name in ("tiny/sft.yaml", "hardware/cpu.yaml"))
    assert found == ["--config", sft, f"--config={cpu}", "--trainer.max_steps=1", "-c", "own.yaml"]
    assert len(notes) == 2


def test_a_shipped_pipeline_runs_into_the_working_folder(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "tiny", "--only", "data"]) == 0
    assert (elsewhere / "runs/tiny/data/pretrain.jsonl").is_file()
    assert names(capsys.readouterr().err, "tiny", shipped_root() / "tiny")


def test_a_copied_pipeline_stays_up_to_date(elsewhere: Path):
    """The shipped folder and its copy give a stage one fingerprint; another text of the recipe gives another."""
    from align.pipeline.stages import read_pipeline

    assert main(["recipes", "copy", "tiny", "recipes/tiny"]) == 0
    for path in ("data", "tokenizer", "cache"):
        (elsewhere / "runs/tiny" / path).mkdir(parents=True)

    def fingerprint(folder: Path) -> str:
        stages = read_pipeline(folder, out=None, seed=0, assignments=[]).stages
        stage = next(stage for stage in stages if stage.name == "pretrain")
        for path in stage.reads:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return stage.fingerprint()

    shipped = fingerprint(shipped_root() / "tiny")
    assert fingerprint(Path("recipes/tiny")) == shipped
    with open("recipes/tiny/pretrain.yaml", "a") as file:
        file.write("# more\n")
    assert fingerprint(Path("recipes/tiny")) != shipped


@pytest.mark.slow
def test_the_wheel_has_every_recipe(elsewhere: Path):
    source = elsewhere / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("align", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (elsewhere / "dist").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"align/recipes/{name}" for name in YAMLS} <= names
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "align").rglob("*") if path.suffix not in {".pyc", ""}
    }
    assert modules <= names, "templates and styles are packaged beside the modules"
