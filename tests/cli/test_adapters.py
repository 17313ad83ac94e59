"""`align fit` with the adapter overlay on every stage, on the shrunken recipes; what reads a run reads these too."""

import json
from pathlib import Path

import pytest
import torch
from naming import error_line

from align.cli import main
from align.cli.lightning import make_cli
from align.io.lightning_checkpoint import load_checkpoint, read_stored
from align.io.manifest import read_manifest, weights_fingerprint

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = str(ROOT / "recipes/hardware/lora.yaml")
QLORA = str(ROOT / "recipes/hardware/qlora.yaml")


@pytest.fixture(scope="module")
def runs(run: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of sft, reward, dpo and ppo, trained with adapters on what the shrunken pipeline left."""
    out = tmp_path_factory.mktemp("adapters")
    for stage in ("sft", "reward", "dpo", "ppo"):
        command = ["fit", "--config", str(recipes / f"{stage}.yaml"), "--config", OVERLAY, "--run", str(run)]
        command += [f"--trainer.default_root_dir={out / stage}", "--model.init_args.lora.rank=2"]
        if stage == "ppo":
            command.append(f"--model.init_args.reward={out / 'reward/adapter'}")
        assert main(command) == 0
    return out


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_every_stage_leaves_a_model_an_adapter_and_a_small_checkpoint(runs: Path, run: Path, stage: str) -> None:
    manifest = read_manifest(runs / stage / "adapter")
    base = run / ("pretrain" if stage == "sft" else "sft") / "model"
    assert manifest["parent"]["weights"] == weights_fingerprint(base)
    assert json.loads((runs / stage / "adapter/adapter_config.json").read_text())["r"] == 2
    assert read_manifest(runs / stage / "model")["parent"]["weights"] == weights_fingerprint(base)
    checkpoint = runs / stage / "checkpoints/last.ckpt"
    names = set(read_stored(checkpoint)["state_dict"])
    assert names
    assert all(".lora_" in name or name.endswith("score.weight") for name in names)
    if stage != "reward":
        opened, ids = load_checkpoint(checkpoint, runs / stage / "model"), torch.arange(20)[None]
        with torch.no_grad():
            assert opened(ids).isfinite().all()


def test_a_run_is_resumed_and_its_adapter_exported(
    runs: Path, run: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = ["fit", "--config", str(recipes / "sft.yaml"), "--config", OVERLAY, "--run", str(run)]
    resumed += [f"--trainer.default_root_dir={runs / 'sft'}", "--model.init_args.lora.rank=2", "--ckpt_path=last"]
    assert main([*resumed, "--trainer.max_epochs=2"]) == 0
    assert main(["export", str(runs / "sft/adapter"), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported/model.safetensors").is_file()
    capsys.readouterr()
    assert main([*resumed[:-1], "--ckpt_path=last", "--model.init_args.lora.rank=3"]) == 2
    error_line(capsys, "rank", 2)
    assert main([*resumed[:-1], "--model.init_args.lora.rank=0"]) == 2
    error_line(capsys, "lora.rank", 0)


def test_four_bits_come_by_overlay_and_lightnings_own_plugin_is_refused(
    run: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_cli(["--config", str(recipes / "dpo.yaml"), "--config", QLORA], parse_only=True).config
    assert config.trainer.precision is None, "the plugin decides it"
    command = ["fit", "--config", str(recipes / "dpo.yaml"), "--run", str(run)]
    command.append(f"--trainer.default_root_dir={tmp_path}")
    assert main([*command, "--config", QLORA, "--trainer.accelerator", "cpu"]) == 1
    error_line(capsys, 32, "CPU")
    own = tmp_path / "own.yaml"
    plugin = "lightning.pytorch.plugins.BitsandbytesPrecision"
    own.write_text(f"trainer:\n  plugins:\n  - class_path: {plugin}\n    init_args: {{mode: nf4}}\n")
    assert main([*command, "--config", str(own)]) == 2
    error_line(capsys, "trainer.plugins", "BitsandbytesPrecision", "align.training.FourBit")
    own.write_text(own.read_text().replace(plugin, "align.training.FourBit").replace("nf4", "int4"))
    assert main([*command, "--config", str(own)]) == 2
    error = error_line(capsys, "trainer.plugins.init_args.mode", "nf4", "nf4-dq", "int4", alone=True)
    assert "subclass" not in error
