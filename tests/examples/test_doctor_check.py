"""examples/doctor_check.py in ``align doctor``, from a directory of the user's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from align.cli import main


def test_it_joins_our_own_checks(copy_example: Callable[[str], None], toys: Path, capsys: pytest.CaptureFixture[str]):
    """Two of three responses have no full stop."""
    copy_example("doctor_check")
    records = [{"prompt": f"Say {word}", "completion": word} for word in ("yes", "no", "both.")]
    Path("chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = {
        "trainer": {"accelerator": "cpu"},
        "model": {"class_path": "align.algorithms.SFT", "init_args": {"init_from": "one"}},
        "data": {
            "class_path": "align.data.ChatData",
            "init_args": {"tokenizer": "one", "train": "chats.jsonl", "context": 32, "cache_dir": "cache"},
        },
    }
    Path("sft.yaml").write_text(yaml.safe_dump(recipe))
    for extra, share in (("", None), (".init_args.share=0.7", 0.7)):
        words = ["--config", "sft.yaml", "--doctor.checks+=doctor_check.FullStop"]
        assert main(["doctor", *words, *([f"--doctor.checks{extra}"] if extra else []), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        found = [one for one in report["stages"][0]["findings"] if one["check"] == "FullStop"]
        assert [one["count"] for one in found] == ([2] if share is None else [])
