"""The tiny pipeline, made so small that it runs in seconds, once for all tests that look at what it leaves."""

import shutil
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
    for stage in pipeline["stages"].values():
        if stage["command"] in ("generate", "preferences"):
            stage["arguments"] |= {"max_new_tokens": 12}
        if stage["command"] == "preferences":
            stage["arguments"] |= {"keep_unfinished": True}  # a toy never ends its turn
        if stage["command"] == "compare":
            stage["arguments"] |= {"max_new_tokens": 8, "n": 2}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for name in ("pretrain", "sft", "reward", "dpo", "kto", "ppo", "grpo"):
        recipe = yaml.safe_load((ROOT / f"recipes/tiny/{name}.yaml").read_text())
        settings = recipe["model"]["init_args"]
        recipe["trainer"] |= {"enable_progress_bar": False, "limit_val_batches": 2, "log_every_n_steps": 2}
        recipe["checkpoint"] = recipe.get("checkpoint", {}) | {"every_n_train_steps": 4}
        recipe["throughput"] = {"every": 2}
        recipe["data"]["init_args"]["batch_size"] = 4
        recipe["data"]["init_args"].pop("by_prompt", None)  # four prompts would be one step
        settings["schedule"]["warmup_steps"] = 1
        if name in ("ppo", "grpo"):
            recipe["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
            settings["rollout"] |= {"episodes": 4, "max_new_tokens": 12}
            settings["update"] |= {"epochs": 1, "minibatches": 2}
            settings.get("value", {}).pop("warmup_iterations", None)
        else:
            recipe["trainer"] |= {"max_steps": 6, "max_epochs": 1, "val_check_interval": 3}
            recipe["trainer"] |= {"check_val_every_n_epoch": None}
        if name == "grpo":
            settings["rollout"] |= {"group_size": 2}
        if "policy_evaluation" in settings:
            settings["policy_evaluation"] |= {"prompts": 2, "max_new_tokens": 12}
        if name == "pretrain":
            settings["gpt"] |= {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32}
        if name == "sft":
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
    for record in out.rglob("plan.json"):
        kept = out.parent / "plans" / record.parent.name
        kept.mkdir(parents=True)
        shutil.copy(record, kept)
    return out


@pytest.fixture(scope="session")
def plans(run: Path) -> Path:
    """What the pipeline's stages predicted and measured, also after other tests have trained one of them again."""
    return run.parent / "plans"
