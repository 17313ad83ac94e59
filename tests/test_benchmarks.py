"""The alignment benchmark gives every peer the same rows and counts its steps; no timing is believed here."""

import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from naming import names, naming

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
    with pytest.raises(RuntimeError, match=naming(2, "1 + 2")):
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


def test_over_optimisation_finds_where_gold_was_highest(tmp_path, monkeypatch, capsys):
    """Gold 0.5 for five iterations, 0.8 for five, 0.2 for five, at KLs 0, 4 and 9, the proxy rising by 1 a block.

    Means of five: the peak is the middle block itself, at KL 4 (root 2), and the end is the last, at KL 9 (root 3).
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import over_optimisation

    blocks = [(0.0, 1.0, 0.5), (4.0, 2.0, 0.8), (9.0, 3.0, 0.2)]
    rows = [f"{kl},{proxy},{gold}" for kl, proxy, gold in blocks for _ in range(5)]
    (tmp_path / "metrics.csv").write_text("\n".join(["rollout/kl,rollout/score,rollout/gold", *rows, ",,"]) + "\n")
    out, numbers = tmp_path / "curve.svg", tmp_path / "numbers.json"
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--out", str(out), "--json", str(numbers)])
    over_optimisation.main()
    (found,) = json.loads(numbers.read_text())
    assert found["start"] == {"kl": 0.0, "proxy": 1.0, "gold": 0.5}
    assert found["gold_peak"] == {"kl": 4.0, "proxy": 2.0, "gold": 0.8}
    assert found["end"] == {"kl": 9.0, "proxy": 3.0, "gold": 0.2}
    assert "| 0.500 | 0.800 | 0.200 | 2.00 | 3.00 | 2.00 | 3.00 |" in capsys.readouterr().out
    assert out.read_text().count("<svg") == 1
    (tmp_path / "metrics.csv").write_text("rollout/kl,rollout/score,rollout/gold\n0,0,0\n")
    with pytest.raises(SystemExit, match=naming(1, "rollout/gold", 15)):
        over_optimisation.main()


def test_reward_agreement_counts_pairs_of_one_prompt(monkeypatch):
    """Two prompts of three answers. The judge has the first two of the first prompt the wrong way round.

    Prompt 1: golds 0.9, 0.8, 0.4 and scores 1, 2, 0: of three untied pairs two are right; both wide ones are.
    Prompt 2: golds 0.5, 0.5, 0.1 with a broken third answer and scores 0, 0, 1: a tie, and two wide pairs, both wrong.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sandbox_alignment

    from align.sandbox import GoldReward

    golds = [
        GoldReward(*[0.0] * len(GoldReward._fields))._replace(total=total, grammar=grammar)
        for total, grammar in ((0.9, 1), (0.8, 1), (0.4, 1), (0.5, 1), (0.5, 1), (0.1, 0.5))
    ]
    monkeypatch.setattr(sandbox_alignment, "load_reward", lambda _: lambda prompts, texts: [1, 2, 0, 0, 0, 1])
    answers = sandbox_alignment.Answers([""] * 6, [], [])
    found = sandbox_alignment.reward_agreement(Path("run"), ["p"] * 6, answers, golds, 3)
    assert found == {
        "untied": 0.4, "untied_pairs": 5,
        "wide": 0.5, "wide_pairs": 4,
        "untied_well_formed": 0.6667, "untied_well_formed_pairs": 3,
        "wide_well_formed": 1.0, "wide_well_formed_pairs": 2,
    }  # fmt: skip


def test_reward_audit_compares_each_fault_with_its_clean_story(monkeypatch, capsys):
    """A judge that gives 1 to a text with an ending of the world's, else 0: only a missing ending costs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reward_audit

    from align.sandbox.stories import check

    def ends(prompts, texts):
        return [float(check(text).closings[-1]) for text in texts]

    monkeypatch.setattr(reward_audit, "load_reward", lambda _: ends)
    monkeypatch.setattr(sys, "argv", ["x", "some/model", "--prompts", "30"])
    reward_audit.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert lines[0] == "| no ending | -1.00 | -1.00 |"
    assert len(lines) > 8
    assert all(line.endswith("| +0.00 | +0.00 |") for line in lines[1:])


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu
    import torch

    precision = torch.get_float32_matmul_precision()
    # Restored at the end, whatever main sets.
    monkeypatch.setattr(gpu.training, "BACKEND", "eager")
    yield gpu
    torch.set_float32_matmul_precision(precision)
    for name in ("gpu", "gpu_parts", "gpu_budget"):
        sys.modules.pop(name, None)


def test_gpu_shapes_have_their_sizes(gpu):
    """Parameters of each size, tied: 50304 D of the embedding, and L (4 D^2 + 3 D F + 2 D) + D of the rest."""
    import torch
    from gpu_parts import shape

    from align.model.gpt import GPT

    with torch.device("meta"):
        found = {size: GPT(shape(size, toy=False)).num_parameters() for size in ("124 M", "350 M", "1.3 B")}
    assert found == {"124 M": 123_587_328, "350 M": 350_405_632, "1.3 B": 1_317_373_952}


def test_gpu_prints_what_was_not_measured(gpu, monkeypatch):
    """No GPU: nothing is measured. A section that fails or no longer fits is a row that says why."""
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=naming("GPU")):
        gpu.main()

    def fail():
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    rows = [gpu.measured("a", fail, 1e9), {"section": "b", "not_measured": "no time left"}]
    rows.append({"section": "c", "batch": "2 x 3", "tokens_per_s": 12.0, "mfu": 0.5, "phases_s": {"update": 0.25}})
    rows.append({"section": "d", "batch": "2 x 3", "compile": "failed: a | b; run without"})
    assert names(rows[0]["not_measured"], "memory")
    *reasons, measured, uncompiled = gpu.table(rows).splitlines()[2:]
    for line, row in zip(reasons, rows[:2], strict=True):
        assert names(line, f"| {row['section']} |", row["not_measured"])
    assert measured == "| c | 2 x 3 | 12 |  |  | 0.50 |  | update 0.25 |"
    assert names(uncompiled, "| d", "failed: a / b; run without | 2 x 3 |")
    assert {line.count("|") for line in (*reasons, measured, uncompiled)} == {9}


def test_gpu_writes_after_every_section_whatever_fails(gpu, tmp_path, monkeypatch, capsys):
    """The file has the earlier rows while a section runs; one that fails or hangs is a row, and the rest is told."""
    out, seen = tmp_path / "new" / "gpu.json", []

    def look():
        seen.append([row["section"] for row in json.loads(out.read_text())["rows"]])
        return {"batch": "1 x 1", "tokens_per_s": 2.0}

    def fail():
        raise ValueError("broken\nin two lines")

    runs = {"first": lambda: {"batch": "1 x 1"}, "fails": fail, "looks": look, "hangs": lambda: time.sleep(60)}
    runs["late"] = look
    monkeypatch.setattr(gpu, "sections", lambda toy: [(name, 20, run) for name, run in runs.items()])
    monkeypatch.setattr(gpu, "empty", lambda: None)  # collecting a whole test run's garbage takes seconds
    budget = gpu.gpu_budget.spent() + 3
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--budget", str(budget), "--out", str(out)])
    before = signal.getsignal(signal.SIGALRM)
    gpu.main()

    assert seen == [["first", "fails"]]
    found = json.loads(out.read_text())
    rows = {row["section"]: row for row in found["rows"]}
    assert list(rows) == list(runs)
    told = {name: row["not_measured"] for name, row in rows.items() if "not_measured" in row}
    assert list(told) == ["fails", "hangs", "late"]
    assert names(told["fails"], "ValueError", "broken")
    assert names(told["hangs"], "time")
    assert told["hangs"] == told["late"]
    assert budget <= found["wall_s"] < budget + 30
    assert rows["looks"]["tokens_per_s"] == 2.0
    assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]
    assert capsys.readouterr().out.count(told["late"]) == 2
    assert signal.getsignal(signal.SIGALRM) is before


def test_gpu_alarm_rings_until_it_is_heard(gpu, monkeypatch):
    """What is raised in a weak reference's callback is dropped; compiled code has many of them."""
    budget, dropped = gpu.gpu_budget, []
    monkeypatch.setattr(budget, "_AGAIN", 0.1)
    monkeypatch.setattr(gpu, "empty", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    class Thing:
        pass

    def wait():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: time.sleep(10))
        del thing
        time.sleep(20)
        return reference

    begun = time.perf_counter()
    row = gpu.measured("deaf", wait, budget.spent() + 2)
    assert names(row["not_measured"], "time")
    assert dropped == [budget.OutOfTime]
    assert 1 < time.perf_counter() - begun < 9
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0


def test_gpu_leaves_out_what_may_not_fit(gpu, monkeypatch, capsys):
    """On a GPU a section that may take 1000 s is not begun with 500 left; one that may take 1 s is."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "device", lambda: "H100")
    monkeypatch.setattr(gpu, "measured", lambda name, run, budget: run() | {"section": name})
    sections = [("long", 1000, lambda: pytest.fail("begun")), ("short", 1, lambda: {"batch": "1 x 1"})]
    monkeypatch.setattr(gpu, "sections", lambda toy: sections)
    budget = str(gpu.gpu_budget.spent() + 500)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--budget", budget])
    gpu.main()
    table = capsys.readouterr().out
    assert names(table, "| long |", "time")
    assert "| short | 1 x 1 |" in table


def compiling_late(wait):
    """As torch's compiler tells of what is raised inside it."""
    try:
        wait()
    except TimeoutError:
        raise RuntimeError("backend='inductor' raised:") from None


def test_gpu_clears_its_alarm(gpu):
    """An alarm of somebody else's (pytest-timeout's, say) goes on; what the compiler makes of ours is still ours."""
    budget, rung = gpu.gpu_budget, []
    old_handler, old_timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with pytest.raises(RuntimeError) as caught, budget.until(budget.spent() + 0.1):
            compiling_late(lambda: time.sleep(10))
        assert budget.out_of_time(caught.value)
        assert not budget.out_of_time(TimeoutError("of a socket"))
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        with pytest.raises(budget.OutOfTime), budget.until(budget.spent() - 1):
            pytest.fail("begun")
        signal.raise_signal(signal.SIGALRM)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, old_handler)
        signal.setitimer(signal.ITIMER_REAL, *old_timer)


def test_gpu_pretrains_without_compiling_where_that_fails(gpu, monkeypatch):
    """As without a C compiler: the row says so. By then the first network is gone."""
    import torch

    made = []
    fresh = gpu.parts.fresh

    def watched(kind, config):
        assert [network for network in made if network() is not None] == []
        network = fresh(kind, config)
        made.append(weakref.ref(network))
        return network

    def backend(graph, inputs):
        raise RuntimeError("Failed to find C compiler. Please specify")

    monkeypatch.setattr(gpu.training, "BACKEND", backend)
    monkeypatch.setattr(gpu.parts, "fresh", watched)
    row = gpu.measured("pretrain", lambda: gpu.pretrain("350 M", 2, "none", toy=True), 1e9)
    torch._dynamo.reset()
    assert len(made) == 2
    assert row["tokens_per_s"] > 0
    assert names(row["compile"], "BackendCompilerFailed", "RuntimeError: Failed to find C compiler. Please specify")


@pytest.mark.parametrize(
    ("errors", "runs", "row"),
    [
        (["out of memory", "out of memory"], [(8, True), (4, True), (2, True)], {}),
        (["no compiler", "out of memory"], [(8, True), (8, False), (4, False)], {"compile": "no compiler"}),
        (["no compiler", "broken"], [(8, True), (8, False)], {"not_measured": "RuntimeError: broken"}),
        (["out of memory"] * 4, [(8, True), (4, True), (2, True), (1, True)], {"not_measured": "memory"}),
        (["late"], [(8, True)], {"not_measured": "time"}),
    ],
)
def test_gpu_pretraining_tries_again(gpu, monkeypatch, errors, runs, row):
    """Memory: half the rows. Another failure: once, uncompiled. Time: never again, whatever the error looks like."""
    seen, left = [], iter(errors)

    def trained(size, rows, recompute, *, compile, toy):
        seen.append((rows, compile))
        error = next(left, "")
        if error == "late":
            compiling_late(gpu.gpu_budget.until(0).__enter__)
        if error:
            raise RuntimeError(error)
        return {"batch": f"{rows}"}

    monkeypatch.setattr(gpu, "trained", trained)
    monkeypatch.setattr(gpu, "empty", lambda: None)
    found = gpu.measured("pretrain", lambda: gpu.pretrain("350 M", 8, "none", toy=True), 1e9)
    assert seen == runs
    said = {name: text for name, text in found.items() if name in ("compile", "not_measured")}
    assert said.keys() == row.keys()
    assert all(names(said[name], token) for name, token in row.items())


def test_gpu_warms_up_every_shape_of_pairs(gpu, monkeypatch):
    """At full size: no timed step of DPO is the first of its shape."""
    seen = []

    class Stop(Exception):
        pass

    class Trainer:
        def __init__(self, steps, **_):
            self.steps = steps

        def fit(self, stage, data):
            seen.extend(tuple(batch.ids.shape) for batch in data.batches)
            seen.append(self.steps.warmup)
            raise Stop

    small = gpu.parts.shape("124 M", toy=True)
    monkeypatch.setattr(gpu.parts, "shape", lambda name, toy: small)
    monkeypatch.setattr(gpu, "trainer", Trainer)
    with pytest.raises(Stop):
        gpu.dpo(False, toy=False)
    *shapes, warmup = seen
    assert set(shapes[warmup:]) <= set(shapes[:warmup])
    assert len(set(shapes)) > 4


def test_gpu_peer_draws_from_the_whole_vocabulary(gpu, tmp_path):
    """First tokens of 512 equal prompts, of 300 nearly equally likely: more than transformers' default of 50."""
    import torch

    path = gpu.parts.save_model(gpu.GPT, gpu.parts.shape("124 M", toy=True), tmp_path / "policy")
    torch.manual_seed(0)
    found = gpu._transformers(path, torch.full((512, 3), 7), 2, "transformers")()
    assert found.shape == (512, 5)
    assert len(found[:, 3].unique()) > 150


def test_gpu_saves_a_network_once_and_whole(gpu, tmp_path, monkeypatch):
    """What was written is not made again; what broke off halfway is."""
    config, made = gpu.parts.shape("124 M", toy=True), []

    def kind(config):
        made.append(1)
        return gpu.GPT(config)

    with monkeypatch.context() as patched:
        patched.setattr(gpu.parts, "save_network", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            gpu.parts.save_model(kind, config, tmp_path / "policy")
    paths = {gpu.parts.save_model(kind, config, tmp_path / "policy") for _ in range(3)}
    assert len(made) == 2
    assert gpu.load_network(paths.pop()).num_parameters() == gpu.GPT(config).num_parameters()


@pytest.mark.slow
def test_gpu_benchmark_runs_at_a_toy_size(tmp_path):
    """Every section, on the CPU, without datasets and jsonargparse."""
    out = tmp_path / "gpu.json"
    code = (
        "import runpy, sys\nsys.modules['datasets'] = sys.modules['jsonargparse'] = None\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\nsys.argv = ['gpu.py', '--toy', '--out', {str(out)!r}]\n"
        f"runpy.run_path({str(BENCHMARKS / 'gpu.py')!r}, run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(out.read_text())
    assert found["toy"]
    assert [row for row in found["rows"] if "not_measured" in row] == []
    sections = {row["section"]: row for row in found["rows"]}
    assert len(sections) == 15
    assert all(row["first_s"] > 0 for name, row in sections.items() if name.startswith("generate"))
    assert all(row.get("tokens_per_s", row.get("samples_per_s")) > 0 for row in sections.values())
    assert set(sections["PPO 124 M"]["phases_s"]) == {"rollout", "scoring", "reading", "update"}
    assert all(seconds > 0 for row in sections.values() for seconds in row.get("phases_s", {}).values())
    assert "| pretrain 350 M |" in result.stdout


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_memory_of_adapters_trains_what_it_says(tmp_path, method, monkeypatch):
    """Rank 16 on seven matrices of one block: A and B of each, and the value model's with its head."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_lora

    shape = {"vocab_size": 300, "layers": 1, "heads": 2, "width": 16, "ff_width": 24, "context": 32}
    memory_lora.prepare(tmp_path, shape)
    setting = {"method": method, "shape": "tiny", "sizes": shape, "folder": str(tmp_path)}
    setting |= {"rows": 2, "prompt": 4, "response": 4}
    thin, whole = memory_lora.lora(setting), memory_lora.full(setting)
    one = 16 * (4 * (16 + 16) + 3 * (16 + 24))
    assert thin["trained_parameters"] == (one if method == "dpo" else 2 * one + 16)
    assert whole["trained_parameters"] > thin["trained_parameters"] / 2
    assert thin["peak_mb"] >= thin["imported_mb"] > 0


def test_the_table_of_families(monkeypatch):
    """One row of it; the checks raise no error, and transformers, peft and the GGUF file agree with us."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ALIGN_CACHE", "")
    import families

    from align.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(families.TEXTS * 3, vocab_size=300)
    row = families.measure("Qwen3", ["logits", "greedy", "gradients", "LoRA", "GGUF in"], tokenizer)
    assert row.pop("greedy") == "8 of 8"
    assert all(float(value) < 1e-4 for value in row.values())
    assert "window is 8" in families.measure("Mistral, window", ["GGUF in"], tokenizer)["GGUF in"]
    for name in ("families", "measure"):
        sys.modules.pop(name, None)
