"""A handful of the drills of benchmarks/kill_drill.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).resolve().parents[1] / "benchmarks/kill_drill.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "ranks", "drills"), [("dpo", 2, 1), ("ppo", 1, 2)])
def test_killed_at_a_random_moment_and_resumed_ends_in_the_same_bits(tmp_path: Path, stage, ranks, drills):
    out = tmp_path / "drills.json"
    words = ["--stages", stage, "--ranks", str(ranks), "--drills", str(drills), "--seed", "2", "--out", str(out)]
    done = subprocess.run([sys.executable, str(DRILL), *words], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(out.read_text())["drills"]
    assert len(found) == drills
    assert all(drill["killed"] and all(drill["same"].values()) for drill in found)
