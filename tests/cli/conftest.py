"""The tiny pipeline, made so small that it runs in seconds, once for all tests that look at what it leaves."""

from pathlib import Path

import pytest
import yaml

from align.cli import main

ROOT = Path(__file__).resolve().parents[2]


def shrink(folder: Path) -> Path:
    """Copy recipes/tiny to ``folder`` with a toy network, few records and few steps."""
    folder.mkdir(parents=True)
    pipeline = yaml.safe_load((ROOT / "recipes/tiny/pipeline.yaml").read_text())
    sizes = {"pretrain_documents": 200, "pretrain_val_documents": 20, "sft_chats": 80, "sft_val_chats": 10}
    sizes |= {"preference_pairs": 2, "preference_val_pairs": 2, "prompts": 4, "prompts_val": 4, "prompts_test": 6}
    pipeline["stages"]["data"]["arguments"] |= sizes
    pipeline["stages"]["samples"]["arguments"] |= {"max_new_tokens": 12}
    for name in ("preferences", "preferences_val"):
        # Six steps teach no end of turn.
        pipeline["stages"][name]["arguments"] |= {"max_new_tokens": 12, "keep_unfinished": True}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for name in ("pretrain", "sft"):
        recipe = yaml.safe_load((ROOT / f"recipes/tiny/{name}.yaml").read_text())
        recipe["trainer"] |= {"max_steps": 6, "max_epochs": 1, "val_check_interval": 3, "log_every_n_steps": 2}
        recipe["trainer"] |= {"enable_progress_bar": False, "check_val_every_n_epoch": None, "limit_val_batches": 2}
        recipe["checkpoint"] = {"every_n_train_steps": 4}
        recipe["throughput"] = {"every": 2}
        recipe["model"]["init_args"]["schedule"]["warmup_steps"] = 1
        recipe["data"]["init_args"]["batch_size"] = 4
        if name == "pretrain":
            recipe["model"]["init_args"]["gpt"] |= {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32}
        else:
            recipe["samples"] = {"chat": True, "prompts": ["Tell me a tale."], "sampling": {"max_new_tokens": 5}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken recipe folder."""
    return shrink(tmp_path_factory.mktemp("recipes") / "small")


@pytest.fixture(scope="session")
def run(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the shrunken pipeline."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(["run", str(recipes), "--out", str(out)]) == 0
    return out
