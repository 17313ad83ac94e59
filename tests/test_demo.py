"""`make demo` from an empty folder, as a stranger would run it."""

import json
import re
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_make_demo_from_an_empty_folder(demo_run: tuple[Path, subprocess.CompletedProcess[str]]):
    """Installs, runs, prints answers and their gold: about 0.5 after SFT on purpose, clearly more after DPO and PPO,
    and a comparison that says so.

    docs/alignment.md has what three seeds reach; half of that is asked here. A second run has nothing to do.
    """
    folder, result = demo_run
    assert result.returncode == 0, result.stderr[-3000:]
    gold = re.findall(r"^sandbox reward.*\bmean ([\d.]+).*\b200\b", result.stdout, re.MULTILINE)
    assert len(gold) == 3, result.stdout[-2000:]
    sft, dpo, ppo = map(float, gold)
    assert 0.4 <= sft <= 0.6
    assert dpo > sft + 0.1
    assert ppo > sft + 0.1
    assert result.stdout.count("[sandbox reward") == 9
    report = json.loads((folder / "runs/tiny/compare/report.json").read_text())
    verdicts = {(pair["a"], pair["b"]): pair["better"] for pair in report["pairs"] if pair["judge"] == "gold"}
    assert verdicts["dpo", "sft"] == "dpo"
    assert verdicts["ppo", "sft"] == "ppo"
    assert {point["model"] for point in report["frontier"]} == {"sft", "dpo", "ppo"}
    assert "runs/tiny/compare/report.html" in result.stdout
    again = subprocess.run(["make", "demo"], cwd=folder, capture_output=True, text=True, timeout=100, check=True)
    assert again.stderr.count("up-to-date") == 13
