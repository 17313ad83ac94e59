"""``align doctor`` and its place in ``align run``: exit codes, JSON, the HTML page, records."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from curate_data import clean

from align.cli import main
from align.io.manifest import read_manifest

SFT = {
    "trainer": {"max_steps": 2, "max_epochs": -1, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {
        "class_path": "align.algorithms.Pretrain",
        "init_args": {"gpt": {"vocab_size": 263, "layers": 1, "heads": 2, "width": 16, "context": 256}},
    },
    "data": {"class_path": "align.data.ChatData", "init_args": {"context": 256, "batch_size": 4}},
}
PIPELINE = {
    "stages": {
        "sft": {
            "command": "fit",
            "recipe": "sft.yaml",
            "reads": ["${folder}/train.jsonl"],
            "writes": "${run}/sft/model",
        },
        "later": {"command": "fit", "recipe": "sft.yaml", "reads": ["${run}/nowhere"], "writes": "${run}/later/model"},
    }
}


@pytest.fixture
def folder(tokenizer_dir: str, tmp_path: Path) -> Path:
    """A recipe folder with one stage that can run, and clean data."""
    recipe = json.loads(json.dumps(SFT))
    recipe["trainer"]["default_root_dir"] = str(tmp_path / "runs/sft")
    recipe["data"]["init_args"] |= {
        "tokenizer": tokenizer_dir,
        "train": str(tmp_path / "train.jsonl"),
        "val_fraction": 0.3,
        "cache_dir": str(tmp_path / "cache"),
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    write(tmp_path, clean("chats", 100, 0))
    return tmp_path


def write(folder: Path, records: list) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["doctor", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_clean_recipe_passes(folder: Path, capsys: pytest.CaptureFixture[str]):
    code, report = doctor(capsys, "--config", str(folder / "sft.yaml"))
    assert code == 0
    assert (report["version"], report["passed"], report["counts"]["error"]) == (1, True, 0)
    (stage,) = report["stages"]
    assert {"name", "stage", "checked", "why_not", "seconds", "findings", "splits", "examples"} == set(stage)
    splits = {name: (split["records"], split["used"]) for name, split in stage["splits"].items()}
    assert splits == {"train": (70, 70), "validation": (30, 30)}
    assert sum(count for _, _, count in stage["splits"]["train"]["histogram"]) == 70
    for finding in stage["findings"]:
        wanted = {"check", "severity", "message", "fix", "split", "count", "total", "share", "examples"}
        assert set(finding) == wanted
    # The first record has a prompt of p bytes and a response of n: n + 1 targets.
    first = clean("chats", 1, 0)[0]
    tokens = stage["examples"][0]["tokens"]
    special = [token["text"] for token in tokens if token["special"]]
    assert special == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert "".join(token["text"] for token in tokens if token["target"]) == first["completion"] + "<|end|>"


def test_settings_of_the_command_line_count(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--config", str(folder / "sft.yaml"), "--model.init_args.optimizer.lr", "10"]
    code, report = doctor(capsys, *words)
    assert code == 0
    assert [one["check"] for one in report["stages"][0]["findings"] if one["severity"] == "warning"] == [
        "LearningRate",
        "RunLength",
    ]
    _, report = doctor(capsys, *words, "--doctor.without", '["LearningRate", "RunLength"]')
    assert report["counts"]["warning"] == 0


def test_an_error_is_exit_code_1_and_stands_on_the_page(folder: Path, capsys: pytest.CaptureFixture[str]):
    records = clean("chats", 100, 0)
    records[7]["completion"] = "  "
    write(folder, records)
    page = folder / "page.html"
    assert main(["doctor", "--config", str(folder / "sft.yaml"), "--html", str(page)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "DroppedRecords" in printed
    assert "line 8" in printed
    text = page.read_text()
    parser = _Tags()
    parser.feed(text)
    assert not parser.loads
    assert parser.open == []
    for part in ("DroppedRecords", "line 8", "width=device-width", "prefers-color-scheme: dark", 'class="t"'):
        assert part in text


class _Tags(HTMLParser):
    """Open tags that are never closed, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_text_of_the_data_is_escaped(folder: Path, capsys: pytest.CaptureFixture[str]):
    records = clean("chats", 100, 0)
    records[0]["completion"] = "<script>alert(1)</script> & more"
    write(folder, records)
    main(["doctor", "--config", str(folder / "sft.yaml"), "--html", str(folder / "page.html")])
    assert "<script" not in (folder / "page.html").read_text()


def test_a_setting_that_the_data_module_rejects_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]):
    code, report = doctor(capsys, "--config", str(folder / "sft.yaml"), "--data.init_args.context", "1")
    assert code == 1
    (finding,) = report["stages"][0]["findings"]
    assert (finding["check"], finding["severity"]) == ("Settings", "error")
    assert "context is 1" in finding["message"]


def test_a_wrong_key_is_a_usage_error(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--config", str(folder / "sft.yaml"), "--data.init_args.contxt", "1"]) == 2
    assert "contxt" in capsys.readouterr().err


def test_all_stages_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]):
    """A stage whose input does not exist yet is not checked, which is no error."""
    code, report = doctor(capsys, str(folder), "--out", str(folder / "runs"))
    assert code == 0
    sft, later = report["stages"]
    assert (sft["name"], sft["stage"], sft["checked"]) == ("sft", "Pretrain", True)
    assert (later["name"], later["checked"]) == ("later", False)
    assert str(folder / "runs/nowhere") in later["why_not"]


def run(folder: Path, *words: str) -> int:
    return main(["run", str(folder), "--out", str(folder / "runs"), "--only", "sft", *words])


def record(folder: Path) -> dict:
    return json.loads((folder / "runs/.stages/sft.json").read_text())


def test_errors_stop_a_run_and_a_flag_overrides(folder: Path, capsys: pytest.CaptureFixture[str]):
    records = clean("chats", 100, 0)
    # Neither the tokenizer nor the data module minds, but every row is longer than the network reads.
    recipe = yaml.safe_load((folder / "sft.yaml").read_text())
    recipe["model"]["init_args"]["optimizer"] = {"lr": 1e-3}
    recipe["doctor"] = {"checks": [{"class_path": "curate_data.Always"}]}
    (folder / "sft.yaml").write_text(yaml.safe_dump(recipe))
    write(folder, records)
    assert run(folder, "--json") == 1
    captured = capsys.readouterr()
    outcome = json.loads(captured.out.splitlines()[-1])
    assert (outcome["name"], outcome["status"]) == ("sft", "failed")
    assert "Always: nothing is ever right" in outcome["why"]
    assert not (folder / "runs/sft").exists()
    assert not (folder / "runs/.stages/sft.json").exists()

    assert run(folder, "--doctor", "warn") == 0
    for found in (record(folder)["doctor"], read_manifest(folder / "runs/sft/model")["doctor"]):
        assert (found["looked"], found["errors"], found["ignored"]) == (True, 1, True)
        assert "Always: nothing is ever right" in found["findings"]
    assert run(folder, "--json") == 0, "it is up to date: the manifest is no part of the output's content"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "up-to-date"

    shutil.rmtree(folder / "runs")
    assert run(folder, "--doctor", "off") == 0
    assert read_manifest(folder / "runs/sft/model")["doctor"] == record(folder)["doctor"] == {"looked": False}
    assert "Always" not in capsys.readouterr().err
