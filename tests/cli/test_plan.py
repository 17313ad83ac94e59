"""``align plan``: the JSON of a plan, wrong usage, and predictions against what the stages of a pipeline measured."""

import json
import shutil
from pathlib import Path

import pytest

from align.cli import main

ROOT = Path(__file__).resolve().parents[2]
PLAN = {
    "assumed": list,
    "configuration": dict,
    "cost_usd": float,
    "flops": dict,
    "hardware": dict,
    "memory": dict,
    "options": list,
    "parameters": dict,
    "schema_version": int,
    "seconds": dict,
    "stage": str,
    "tokens": dict,
    "utilisation": dict,
}
"""Fields of a plan, with their types"""

EXACT = ("memory.parameters", "memory.gradients", "memory.optimizer", "memory.frozen")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of wrong usage."""
    assert main(["plan", *words]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_pretraining_needs_neither_data_nor_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2's shape for 4,768 steps of 524,288 tokens, 854,438,400 FLOPs each, at half of 989.4 TFLOP/s."""
    recipe = str(ROOT / "recipes/plan/pretrain_124m.yaml")
    found = plan(capsys, "--config", recipe, "--hardware", "h100", "--mfu", "0.5")
    assert {name: type(value) for name, value in found.items()} == PLAN
    assert sum(found["parameters"]["policy"]["parts"].values()) == 124_439_808
    tokens = 4768 * 32 * 16 * 1024
    assert found["tokens"]["trained"] == tokens
    assert found["flops"]["total"] == tokens * 854_438_400
    seconds = tokens * 854_438_400 / (0.5 * 989.4e12)
    assert found["seconds"]["total"] == pytest.approx(seconds)
    assert found["cost_usd"] == pytest.approx(seconds / 3600 * found["hardware"]["price_usd_per_hour"])
    assert found["configuration"]["precision"] == "bf16-mixed"
    assert found["memory"]["fits"]
    assert found["memory"]["peak"] == sum(found["memory"]["parts"].values())
    assert len(found["assumed"]) == 1  # the sizes of rows, as there are no data


def test_ppo_of_a_model_that_is_only_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    """Policy, value model, reference and reward model of Llama 2 7B's shape, whose parameters are 6,738,415,616."""
    words = ["--config", str(ROOT / "recipes/plan/ppo_7b.yaml"), "--hardware", "h100"]
    words += ["--network", f"policy={ROOT / 'recipes/plan/llama-2-7b'}"]
    found = plan(capsys, *words)
    assert list(found["parameters"]) == ["policy", "value", "reference", "reward"]
    assert sum(found["parameters"]["policy"]["parts"].values()) == 6_738_415_616
    assert found["configuration"]["strategy"] == "fsdp2 x8"
    assert {"sampling", "training policy", "training value", "reading reward"} <= found["flops"]["run"].keys()
    assert {"training", "sampling", "reading"} <= found["seconds"]["parts"].keys()
    assert not any(option["fits"] for option in found["options"] if option["strategy"] == "ddp x8")
    shorter = plan(capsys, *words, "--response-tokens", "100")
    assert shorter["tokens"]["sampled"] == pytest.approx(found["tokens"]["sampled"] * 100 / 512)
    sweep = plan(capsys, *words, "--sweep")["sweep"]
    costs = [one["cost_usd"] for one in sweep]
    assert costs == sorted(costs)
    assert {one["hardware"] for one in sweep} == {"h100"}


def test_the_plan_of_a_stage_reads_its_data(capsys: pytest.CaptureFixture[str], recipes: Path, run: Path) -> None:
    """Six steps of 4 pairs; reference and policy are the SFT model's shape."""
    words = ["--config", str(recipes / "dpo.yaml"), "--run", str(run), "--mfu", "0.5"]
    found = plan(capsys, *words, "--hardware", "t4")
    assert found["tokens"]["steps"] == 6
    assert found["assumed"] == []
    assert found["flops"]["run"].keys() == {"training policy", "reading reference"}
    assert found["configuration"]["precision"] == "32-true"  # a T4 has no bfloat16
    here = plan(capsys, *words)
    assert here["hardware"]["key"] == "this-cpu"
    assert here["cost_usd"] is None
    assert here["memory"]["parts"]["process"] > 0
    assert main(["plan", *words, "--hardware", "m3-max"]) == 0  # text, without time or cost
    assert "no price" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--hardware", "abacus"], ["abacus", "h100", "rtx4090", "this-cpu"]),
        (["--gpus", "0"], ["gpus", "0"]),
        (["--mfu", "2"], ["mfu", "2"]),
        (["--network", "policy"], ["network", "policy", "ROLE=DIR"]),
        (["--network", "judge=x"], ["judge", "policy"]),
        (["--network", "policy=nowhere"], ["policy", "nowhere", "--network"]),
        (["--like", "nowhere"], ["--like", "nowhere"]),
        (["--data.init_args.context", "x"], ["data.init_args.context"]),
        (["--trainer.precision", "16-mixed"], ["precision", "16-mixed", "bf16-mixed"]),
        (["--trainer.max_step", "3"], ["trainer.max_step"]),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]) -> None:
    message = refused(capsys, "--config", str(ROOT / "recipes/plan/pretrain_124m.yaml"), *words)
    assert all(part in message for part in parts)


def test_help_names_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    from align.plan.hardware import known

    assert main(["plan", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in known())


def test_a_recipe_or_a_run_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--config" in refused(capsys)
    assert str(tmp_path) in refused(capsys, "--check", str(tmp_path))
    (tmp_path / "plan.json").write_text('{"schema_version": 99}')
    assert "99" in refused(capsys, "--check", str(tmp_path))


def test_a_pipelines_predictions_are_checked(capsys: pytest.CaptureFixture[str], plans: Path) -> None:
    """What is held is exact; every stage measured its peak, its time and its tokens."""
    found = plan(capsys, "--check", str(plans))
    assert [one["stage"] for one in found["runs"]] == ["Pretrain", "SFT", "Reward", "DPO", "PPO"]
    for one in found["runs"]:
        parts = {part["part"]: part for part in one["parts"]}
        assert one["finished"]
        for name in EXACT:
            assert parts[name]["predicted"] == parts[name]["measured"], (one["stage"], name)
        assert 0.7 < parts["memory.peak"]["ratio"] < 1.4
        assert parts["seconds.total"]["measured"] > 0
        assert parts["tokens.trained"]["ratio"] == pytest.approx(1, abs=0.5)
    assert main(["plan", "--check", str(plans / "ppo")]) == 0
    text = capsys.readouterr().out
    assert "seconds.rollout" in text
    assert "tokens.sampled" in text


def test_a_run_that_has_not_finished(capsys: pytest.CaptureFixture[str], plans: Path, tmp_path: Path) -> None:
    shutil.copy(plans / "sft/plan.json", tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(record | {"measured": None}))
    (only,) = plan(capsys, "--check", str(tmp_path))["runs"]
    assert not only["finished"]
    assert {part["ratio"] for part in only["parts"]} == {None}
    assert main(["plan", "--check", str(tmp_path)]) == 0
    assert "nothing is measured" in capsys.readouterr().out.replace("\n", " ")


def test_the_mfu_of_another_run(capsys: pytest.CaptureFixture[str], recipes: Path, run: Path, plans: Path) -> None:
    """FLOPs for the measured tokens over measured seconds and the peak."""
    record = json.loads((plans / "sft/plan.json").read_text())
    predicted, measured = record["predicted"], record["measured"]
    share = measured["tokens"]["trained"] / predicted["tokens"]["trained"]
    flops = predicted["flops"] * share / measured["seconds"]["total"]
    words = ["--config", str(recipes / "sft.yaml"), "--run", str(run), "--like", str(plans / "sft")]
    assert plan(capsys, *words)["utilisation"]["mfu"] == pytest.approx(flops / predicted["peak_flops"])
    assert "h100" in refused(capsys, *words, "--hardware", "h100").lower()
