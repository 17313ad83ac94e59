"""`make demo` from an empty folder, as a stranger would run it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_make_demo_from_an_empty_folder(tmp_path: Path):
    """Installs, runs, prints answers and their gold: about 0.5 after SFT on purpose, clearly more after DPO and PPO,
    and a comparison that says so.

    docs/alignment.md has what three seeds reach; half of that is asked here. A second run has nothing to do.
    """
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    result = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=1400)
    assert result.returncode == 0, result.stderr[-3000:]
    gold = re.findall(r"^sandbox reward.*\bmean ([\d.]+).*\b200\b", result.stdout, re.MULTILINE)
    assert len(gold) == 3, result.stdout[-2000:]
    sft, dpo, ppo = map(float, gold)
    assert 0.4 <= sft <= 0.6
    assert dpo > sft + 0.1
    assert ppo > sft + 0.1
    assert result.stdout.count("[sandbox reward") == 9
    report = json.loads((tmp_path / "runs/tiny/compare/report.json").read_text())
    verdicts = {(pair["a"], pair["b"]): pair["better"] for pair in report["pairs"] if pair["judge"] == "gold"}
    assert verdicts["dpo", "sft"] == "dpo"
    assert verdicts["ppo", "sft"] == "ppo"
    assert {point["model"] for point in report["frontier"]} == {"sft", "dpo", "ppo"}
    assert "runs/tiny/compare/report.html" in result.stdout
    again = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True)
    assert again.stderr.count("up-to-date") == 13
