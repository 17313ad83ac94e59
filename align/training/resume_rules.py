"""What a changed setting does to a resumed run: one rule per setting, as data.

``align fit`` compares the settings in a checkpoint with those of the run that resumes from it and treats each
difference by its rule (``align/training/resume.py``). docs/resume.md is generated from this table; a test walks the
settings of every stage, data module, callback and the Trainer, and fails for a setting without a rule.

A key is the recipe's key without ``init_args``; ``key.*`` is the rule of every setting below ``key`` and of ``key``
itself. ``key.code`` is the code of a class or reward function of the user's own. A setting without a rule, such as one
of a stage of your own, is refused.
"""

from enum import StrEnum
from typing import NamedTuple


class Behaviour(StrEnum):
    """What happens to a run that resumes with another value."""

    EFFECT = "takes effect"
    """The new value counts from the checkpoint on; a line names both values"""
    REPORTED = "reported"
    """What is left to train stays the same, apart from rounding; a warning names both values and the reason"""
    REFUSED = "refused"
    """The run ends with exit code 2 before anything is built or written; the error names both values"""


class Rule(NamedTuple):
    """The rule of a setting.

    Attributes:
        behaviour: what a changed value does.
        why: the reason, or what the new value applies to.
        by_content: another value is allowed if it stands for the same content, such as a moved directory with the same
            weights; another content is refused, whether the value has changed or not.
    """

    behaviour: Behaviour
    why: str
    by_content: bool = False


def _effect(why: str = "from the next step on") -> Rule:
    return Rule(Behaviour.EFFECT, why)


def _reported(why: str) -> Rule:
    return Rule(Behaviour.REPORTED, why)


def _refused(why: str) -> Rule:
    return Rule(Behaviour.REFUSED, why)


def _content(why: str) -> Rule:
    return Rule(Behaviour.REFUSED, why, by_content=True)


NOT_TRAINING = "it does not touch what is trained"
"""Why a setting may change that has nothing to do with the result"""

_NOT_TRAINING = _effect(NOT_TRAINING)
_LENGTH = _effect("the schedule spans the new length; a jump of the learning rate is reported")
_OBJECTIVE = _refused("it is part of the objective")
_SHAPE = _refused("it decides the shape of the network or its computation")
_ROUNDING = _reported("the same computation, rounded differently")
_MEASURED = _reported("what is measured before and after differs, so the best model is chosen from unlike figures")
_PAST = _refused("it acted before the checkpoint, and the model directory would record a value that was never used")
_ROWS = _refused("it decides the rows, so the position in the data would mean other rows")
_ITERATION = _refused("it decides what an iteration samples and trains on")

RULES: dict[str, Rule] = {
    # The run.
    "seed_everything": _refused("it decides dropout and samples"),
    "run": _effect("names folders only; what is in them is compared"),
    "optimizer": _refused("the stage builds its optimizer itself"),
    "lr_scheduler": _refused("the stage builds its schedule itself"),
    "checkpoint.every_n_train_steps": _NOT_TRAINING,
    "checkpoint.every_minutes": _NOT_TRAINING,
    "checkpoint.keep_last": _NOT_TRAINING,
    "checkpoint.keep_every_n_train_steps": _NOT_TRAINING,
    "checkpoint.keep_every_hours": _NOT_TRAINING,
    "checkpoint.save_top_k": _NOT_TRAINING,
    "checkpoint.monitor": _effect("the ranking starts over; earlier checkpoints stay on disk"),
    "checkpoint.mode": _effect("the ranking starts over; earlier checkpoints stay on disk"),
    "health.*": _NOT_TRAINING,
    "doctor.*": _NOT_TRAINING,
    "model_directory.which": _effect("from the next validation on"),
    "model_directory.monitor": _effect("the best value is forgotten; the next validation writes the model"),
    "samples.*": _NOT_TRAINING,
    "throughput.every": _NOT_TRAINING,
    "baseline.validate": _reported("a resumed run has no baseline validation"),
    "average.decay": _effect("from the next step on; a new average begins with the weights of the checkpoint"),
    # The Trainer.
    "trainer.max_epochs": _LENGTH,
    "trainer.min_epochs": _effect("it decides when the run ends"),
    "trainer.max_steps": _LENGTH,
    "trainer.min_steps": _effect("it decides when the run ends"),
    "trainer.max_time": _effect("it decides when the run ends"),
    "trainer.gradient_clip_val": _effect(),
    "trainer.gradient_clip_algorithm": _effect(),
    "trainer.accumulate_grad_batches": _refused("Lightning counts micro-batches, and a step would have other rows"),
    "trainer.limit_train_batches": _refused("it decides the length of an epoch"),
    "trainer.overfit_batches": _ROWS,
    "trainer.use_distributed_sampler": _ROWS,
    "trainer.reload_dataloaders_every_n_epochs": _ROWS,
    "trainer.limit_val_batches": _MEASURED,
    "trainer.val_check_interval": _effect("from the next validation on"),
    "trainer.check_val_every_n_epoch": _effect("from the next validation on"),
    "trainer.limit_test_batches": _NOT_TRAINING,
    "trainer.limit_predict_batches": _NOT_TRAINING,
    "trainer.accelerator": _ROUNDING,
    "trainer.strategy.*": _ROUNDING,
    "trainer.devices": _ROUNDING,
    "trainer.num_nodes": _ROUNDING,
    "trainer.precision": _ROUNDING,
    "trainer.plugins": _ROUNDING,
    "trainer.deterministic": _ROUNDING,
    "trainer.benchmark": _ROUNDING,
    "trainer.sync_batchnorm": _reported("no network has batch normalisation"),
    "trainer.logger.*": _NOT_TRAINING,
    "trainer.callbacks.*": _effect("callbacks of your own are not compared"),
    "trainer.fast_dev_run": _NOT_TRAINING,
    "trainer.num_sanity_val_steps": _NOT_TRAINING,
    "trainer.log_every_n_steps": _NOT_TRAINING,
    "trainer.enable_checkpointing": _NOT_TRAINING,
    "trainer.enable_progress_bar": _NOT_TRAINING,
    "trainer.enable_model_summary": _NOT_TRAINING,
    "trainer.inference_mode": _NOT_TRAINING,
    "trainer.profiler.*": _NOT_TRAINING,
    "trainer.detect_anomaly": _NOT_TRAINING,
    "trainer.barebones": _NOT_TRAINING,
    "trainer.default_root_dir": _NOT_TRAINING,
    "trainer.enable_autolog_hparams": _NOT_TRAINING,
    "trainer.model_registry": _NOT_TRAINING,
    # Every stage.
    "model": _refused("a checkpoint belongs to its stage"),
    "model.code": _effect("the code of a stage of your own counts from the next step on"),
    "model.init_from": _content("the run has trained on from these weights"),
    "model.optimizer.lr": _effect(),
    "model.optimizer.betas": _effect(),
    "model.optimizer.eps": _effect(),
    "model.optimizer.weight_decay": _effect(),
    "model.optimizer.matrices": _refused("it decides what the optimizer's state is"),
    "model.optimizer.momentum": _effect(),
    "model.optimizer.state_bits": _refused("it decides the format of the optimizer's state"),
    "model.schedule.kind": _effect(),
    "model.schedule.warmup_steps": _effect(),
    "model.schedule.final_factor": _effect(),
    "model.schedule.decay_share": _effect(),
    "model.lora.*": _SHAPE,
    "model.compile": _ROUNDING,
    "model.memory.activation_checkpointing": _ROUNDING,
    "model.memory.frozen_dtype": _ROUNDING,
    "model.memory.compile_widths": _ROUNDING,
    "model.memory.low_precision_weights": _reported("a permission, which changes nothing by itself"),
    # Pretrain and SFT.
    "model.gpt.*": _SHAPE,
    "model.init_seed": _PAST,
    "model.z_loss": _OBJECTIVE,
    "model.add_tokens": _SHAPE,
    # Reward.
    "model.margin": _OBJECTIVE,
    "model.label_smoothing": _OBJECTIVE,
    "model.centering": _OBJECTIVE,
    "model.head_seed": _PAST,
    "model.normalise_on": _effect("when the model directory is next written"),
    # Distillation.
    "model.teacher": _content("it is part of the objective"),
    "model.divergence.*": _OBJECTIVE,
    "model.temperature": _OBJECTIVE,
    "model.max_new_tokens": _OBJECTIVE,
    # Pairs.
    "model.loss.*": _OBJECTIVE,
    "model.sft_coef": _OBJECTIVE,
    "model.reference": _content("it is part of the objective"),
    "model.reference_logprobs": _ROUNDING,
    "model.shared_prefix": _ROUNDING,
    "model.other_reference": _reported("a permission, which is asked for at the first step only"),
    # Rollouts.
    "model.reward": _content("it is part of the objective"),
    "model.reward.*": _OBJECTIVE,
    "model.environment.*": _OBJECTIVE,
    "model.gold.*": _reported("it is only logged"),
    "model.estimator.*": _OBJECTIVE,
    "model.rollout.episodes": _ITERATION,
    "model.rollout.group_size": _ITERATION,
    "model.rollout.engine.*": _ROUNDING,
    "model.rollout.ahead": _effect("from the next iteration on"),
    "model.rollout.refills": _effect("from the next iteration on"),
    "model.rollout.temperature": _ITERATION,
    "model.rollout.max_new_tokens": _ITERATION,
    "model.rollout.logprob_tolerance": _reported(
        "the first iteration has decided whether old log-probs are recomputed"
    ),
    "model.rollout.dtype": _effect("from the next iteration on"),
    "model.rollout.importance_cap": _effect("from the next iteration on"),
    "model.scoring.normalise": _OBJECTIVE,
    "model.scoring.reward_clip": _OBJECTIVE,
    "model.scoring.missing_eos_penalty": _OBJECTIVE,
    "model.scoring.overlong_tokens": _OBJECTIVE,
    "model.scoring.overlong_penalty": _OBJECTIVE,
    "model.kl.kl_coef": _effect("from the next iteration on; an adaptive coefficient starts again from it"),
    "model.kl.kl_in": _OBJECTIVE,
    "model.kl.estimator.*": _OBJECTIVE,
    "model.kl.kl_target": _effect("from the next iteration on"),
    "model.kl.kl_horizon": _effect("from the next iteration on"),
    "model.kl.stop_kl": _effect("from the next iteration on"),
    "model.update.epochs": _ITERATION,
    "model.update.minibatches": _ITERATION,
    "model.update.surrogate.*": _OBJECTIVE,
    "model.update.surrogate.low": _effect(),
    "model.update.surrogate.high": _effect(),
    "model.update.average.*": _OBJECTIVE,
    "model.update.target_kl": _effect(),
    "model.value": _SHAPE,
    "model.value.shared_trunk": _SHAPE,
    "model.value.init_from": _content("the value model has trained on from these weights"),
    "model.value.lr_factor": _effect(),
    "model.value.value_coef": _effect(),
    "model.value.value_clip_range": _effect(),
    "model.value.warmup_iterations": _effect("from the next iteration on"),
    "model.policy_evaluation.prompts": _MEASURED,
    "model.policy_evaluation.temperature": _MEASURED,
    "model.policy_evaluation.max_new_tokens": _MEASURED,
    "model.policy_evaluation.judge.*": _MEASURED,
    "model.policy_evaluation.seed": _MEASURED,
    # Data.
    "data": _ROWS,
    "data.code": _ROWS,
    "data.tokenizer": _content("it decides the tokens"),
    "data.train": _content("it decides the rows"),
    "data.validation": _MEASURED,
    "data.test": _NOT_TRAINING,
    "data.val_fraction": _ROWS,
    "data.context": _ROWS,
    "data.batch_size": _content("batch_size x ranks decides the rows of a step"),
    "data.seed": _ROWS,
    "data.workers": _NOT_TRAINING,
    "data.processes": _NOT_TRAINING,
    "data.cache_dir": _NOT_TRAINING,
    "data.on_bad_record": _ROWS,
    "data.chat_template": _ROWS,
    "data.system_prompt": _ROWS,
    "data.format.*": _ROWS,
    "data.epoch": _ROWS,
    "data.streaming": _ROWS,
    "data.shuffle_buffer": _ROWS,
    "data.files_by_rank": _ROWS,
    "data.packing": _ROWS,
    "data.block_diagonal": _ROWS,
    "data.by_prompt": _ROWS,
    "data.max_prompt_tokens": _ROWS,
}


def rule_of(key: str) -> Rule | None:
    """The rule of a setting.

    Args:
        key: of the recipe, with or without ``init_args``.

    Returns:
        Rule: the setting's own, or that of the nearest group above it; None if there is neither.
    """
    parts = [part for part in key.split(".") if part not in ("init_args", "class_path")]
    own = RULES.get(".".join(parts))
    groups = (RULES.get(".".join([*parts[:end], "*"])) for end in range(len(parts), 0, -1))
    return own or next((rule for rule in groups if rule is not None), None)
