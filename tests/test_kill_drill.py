"""A handful of the drills of benchmarks/kill_drill.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "engines/fake"
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_engine_or_trainer_leaves_nothing_and_resumes_in_the_same_bits(tmp_path: Path):
    """One drill each, with a fake of vLLM's server that samples with our network."""
    out = tmp_path / "drills.json"
    words = ["--stages", "ppo", "--ranks", "1", "--drills", "2", "--engine", sys.executable, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(FAKE), "FAKE_NETWORK": "1"}
    run = [sys.executable, str(DRILL), *words]
    done = subprocess.run(run, capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    trainer, engine = json.loads(out.read_text())["drills"]
    assert trainer["left_codes"] == [-9]
    assert engine["left_codes"] == [1]
    for drill in (trainer, engine):
        assert all(drill["same"].values())
        assert not drill["orphans"]
        assert not drill["weights_left"]
