import csv
from pathlib import Path

from align.callbacks.loggers import RunLog


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(run: Path, steps: range, key: str = "a") -> None:
    logger = RunLog(run)
    for step in steps:
        logger.log_metrics({key: float(step)}, step)
    logger.finalize("success")


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path):
    logger = RunLog(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    assert rows(tmp_path) == [{"a": "1.0", "step": "0"}]


def test_a_resumed_run_continues_its_file(tmp_path: Path):
    """Logged to step 5, killed, resumed from a checkpoint at step 3: steps 3..7 come from the second try."""
    log(tmp_path, range(6))
    log(tmp_path, range(3, 8))
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(8))


def test_a_fresh_run_replaces_the_file(tmp_path: Path):
    log(tmp_path, range(6))
    log(tmp_path, range(2))
    assert [int(row["step"]) for row in rows(tmp_path)] == [0, 1]


def test_new_columns_join_the_old_ones(tmp_path: Path):
    log(tmp_path, range(2))
    log(tmp_path, range(2, 3), key="b")
    assert rows(tmp_path)[0] == {"a": "0.0", "b": "", "step": "0"}
    assert rows(tmp_path)[2] == {"a": "", "b": "2.0", "step": "2"}
