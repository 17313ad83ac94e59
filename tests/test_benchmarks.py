"""The alignment benchmark gives every peer the same rows and counts its steps; no timing is believed here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TOY = {"vocab_size": 300, "layers": 1, "heads": 2, "width": 16, "ff_width": 32, "context": 40}
SETTING = {"lengths": "mixed", "shape": TOY, "span": (5, 12), "new": 4, "warmup": 1, "steps": 2}


@pytest.fixture
def alignment(monkeypatch):
    for folder in (BENCHMARKS, BENCHMARKS / "alignment"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("measure", "rows", "bench_alignment", "ours_alignment", "trl_alignment"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("alignment")
@pytest.mark.parametrize(
    ("method", "peer", "sizes"),
    [
        ("sft", "align", {"batch": 3, "group": 1, "rows": 6}),
        ("reward", "align", {"batch": 3, "group": 1, "rows": 6}),
        ("dpo", "align", {"batch": 3, "group": 1, "rows": 6}),
        ("dpo", "align-on-the-fly", {"batch": 3, "group": 1, "rows": 6}),
        ("ppo", "align", {"batch": 4, "group": 1, "rows": 4}),
        ("ppo", "align-shared", {"batch": 4, "group": 1, "rows": 4}),
        ("grpo", "align", {"batch": 2, "group": 2, "rows": 4}),
    ],
)
def test_measures_our_stages(method, peer, sizes):
    from bench_alignment import METHODS, PEERS

    assert peer in METHODS[method]
    found = PEERS[peer](SETTING | sizes | {"method": method})
    assert 0 < found["cpu_s"] < 10
    assert 0 < found["wall_s"] < 100
    assert ("cpu_s_with_reference" in found) == (method == "dpo" and peer == "align")


@pytest.mark.usefixtures("alignment")
def test_both_sides_read_the_same_rows(tmp_path):
    """Our data rooms and TRL's tokenizer turn the texts into exactly the ids, each row once behind the warm-up."""
    import ours_alignment
    import trl_alignment
    from rows import make_rows, words

    rows = make_rows(6, "mixed", 300, span=(5, 12))
    setting = SETTING | {"method": "dpo", "batch": 2, "warmup": 1}
    tokenizer = ours_alignment._spelling_tokenizer(300)
    _, data = ours_alignment._parts(setting, {}, tmp_path, tokenizer, rows)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    batches = [*loader, *loader][setting["warmup"] :][:3]
    seen = [
        (
            batch.ids[i, :n].tolist(),
            batch.ids[i, n : batch.lengths[i]].tolist(),
            batch.ids[i + 2, n : batch.lengths[i + 2]].tolist(),
        )
        for batch in batches
        for i, n in enumerate(batch.prompt_lengths)
    ]
    assert sorted(seen) == sorted(map(tuple, rows))
    theirs = trl_alignment.spelling_tokenizer(300)
    for row in rows:
        assert all(theirs(words(ids))["input_ids"] == ids for ids in row)
        assert words(row.chosen).endswith(theirs.eos_token)  # or TRL would add one


@pytest.mark.usefixtures("alignment")
def test_rows_have_their_lengths():
    from rows import make_rows

    assert {len(part) for row in make_rows(5, "fixed", 4096) for part in row} == {64}
    lengths = [len(part) for row in make_rows(400, "mixed", 4096) for part in row]
    assert (min(lengths), max(lengths)) == (16, 112)
    assert make_rows(3, "mixed", 4096) == make_rows(3, "mixed", 4096)


@pytest.mark.usefixtures("alignment")
def test_clock_leaves_the_warm_up_out():
    from rows import Clock

    clock = Clock(warmup=1, steps=2)
    clock.tick()
    sum(range(3_000_000))
    clock.tick()
    with pytest.raises(RuntimeError, match=r"2 steps were done instead of 1 \+ 2"):
        clock.numbers()
    clock.tick()
    found = clock.numbers(reference_cpu=8.0)
    assert 0 < found["cpu_s"] < 5
    assert found["cpu_s_with_reference"] == found["cpu_s"] + 4


def test_settings_choose_peers_and_interpreters(tmp_path):
    """Of two settings one leaves a peer out, the other runs it with another python."""
    (tmp_path / "other-python").write_text(f'#!/bin/sh\nOTHER=1 exec {sys.executable} "$@"\n')
    (tmp_path / "other-python").chmod(0o755)
    settings = [{"name": "s", "peers": ["a"]}, {"name": "t", "python": {"b": str(tmp_path / "other-python")}}]
    script = tmp_path / "bench.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nfrom measure import main, parser\n"
        "def peer(setting):\n    return {'other': int(os.environ.get('OTHER', 0))}\n"
        "peers = {'a': peer, 'b': peer}\n"
        f"main(parser('', peers).parse_args(), peers, {settings!r}, columns=['other'])\n"
    )
    result = subprocess.run([sys.executable, script, "--rounds", "1"], capture_output=True, text=True, check=True)
    assert [line for line in result.stdout.splitlines() if line.startswith(("| s", "| t"))] == [
        "| setting | peer | other |",
        "| s | a | 0 |",
        "| t | a | 0 |",
        "| t | b | 1 |",
    ]
