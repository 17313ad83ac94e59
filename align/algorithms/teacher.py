"""What the stages of distillation share: the checks of a teacher, and a student's divergence from it.

Legend: M positions that count, D width of the student, E width of the teacher.
"""

from typing import Any

import torch

from align.algorithms.module import Stage
from align.generation.sampled_ids import SampledIds
from align.io.location import locate
from align.model.gpt import GPT
from align.objectives import Divergence, linear_divergence
from align.tokenizer import Tokenizer


def check_teacher(teacher: str, tokenizer: Any) -> None:
    """Refuse a teacher whose ids mean other tokens than the data's.

    Args:
        teacher: model or Hugging Face directory, GGUF file or Hub id.
        tokenizer: of the data, which is the student's.

    Raises:
        ValueError: the fingerprints of the tokenizers differ.
    """
    theirs = Tokenizer.load(locate(teacher)).fingerprint
    if theirs != tokenizer.fingerprint:
        raise ValueError(
            f"teacher {teacher} has tokenizer {theirs[:12]}, the data {tokenizer.fingerprint[:12]}: their "
            "distributions are over different tokens; distil from a teacher with the student's tokenizer, or train SFT "
            "on the teacher's responses"
        )


def divergence_at(
    student: GPT,
    teacher: GPT,
    states: torch.Tensor,
    teacher_states: torch.Tensor,
    divergence: Divergence,
    *,
    temperature: float,
    tokenizer: Any,
) -> torch.Tensor:
    """Summed divergence of the student from the teacher, over the ids of the tokenizer.

    Args:
        student: differentiable.
        teacher: of the same tokenizer; its output matrix may have other rows of padding.
        states: ``[M, D]`` of the student.
        teacher_states: ``[M, E]``.
        divergence: of the distributions.
        temperature: divides the logits of both.
        tokenizer: of the data, whose ids the distributions are over; None: all rows of the output matrices.

    Returns:
        ``[]`` nats.
    """
    sampled = SampledIds() if tokenizer is None else SampledIds.of(tokenizer)
    return linear_divergence(
        states,
        sampled.rows(student.output_weight),
        teacher_states,
        sampled.rows(teacher.output_weight),
        divergence,
        temperature=temperature,
        softcap=student.softcap,
        teacher_softcap=teacher.softcap,
    )


def check_settings(stage: str, teacher: str, temperature: float) -> None:
    """Refuse a stage without a teacher, and an impossible temperature.

    Raises:
        ValueError: in one line, which setting.
    """
    if not teacher:
        raise ValueError(f"{stage} needs teacher: a model or Hugging Face directory, a GGUF file or a Hub id")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be above 0")


def check_networks(stage: Stage, source: str, teacher: GPT) -> None:
    """Refuse data that the teacher can't read.

    Args:
        stage: with a Trainer.
        source: of the teacher.
        teacher: the network.

    Raises:
        ValueError: its tokenizer is not the data's, or its context is shorter than the rows.
    """
    tokenizer = data_tokenizer(stage)
    if tokenizer is not None:
        check_teacher(source, tokenizer)
    context = int(getattr(getattr(stage.trainer, "datamodule", None), "context", 0))
    if context > teacher.config.context:
        raise ValueError(
            f"data.context is {context} tokens, but the teacher's context is {teacher.config.context}; set "
            f"data.context to at most {teacher.config.context}"
        )


def data_tokenizer(stage: Stage) -> Any:
    """The tokenizer of the stage's data module, or None."""
    return getattr(getattr(stage.trainer, "datamodule", None), "tokenizer", None)
