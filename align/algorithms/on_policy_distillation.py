"""On-policy distillation: a student learns a teacher's distribution of each token that it samples itself.

To follow a prompt to its loss, read ``OnPolicyDistill.training_step``, then ``align/objectives/divergence.py``.

Legend: B prompts, T tokens of the longest row.
"""

import torch

from align.adapters.lora import LoraConfig
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.starting_points import initial_network, load_start
from align.algorithms.teacher import check_networks, check_settings, data_tokenizer, divergence_at
from align.batches import PromptBatch
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.model.response_states import response_states
from align.objectives import Divergence, ReverseKL
from align.rewards.functions import columns_read
from align.training.lightning_internals import batch_index
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig
from align.training.preemption import preemptible
from align.training.sharding import gathered


class OnPolicyDistill(Stage):
    """Trains a student on the teacher's distribution of each token that the student samples itself.

    On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649, algorithm 1 with lambda 1; Gu et al. 2024): the
    student learns in the situations that it gets itself into. The divergence is taken over the whole vocabulary at
    every token, so it needs neither reward nor advantages; the gradient does not pass through sampling.

    One step:
        1. sample a response to each prompt of the batch, at temperature 1, over the whole vocabulary;
        2. hidden states of student and teacher before its tokens;
        3. divergence of their distributions, summed;
        4. divide by the sampled tokens of the whole optimizer step (``Stage.weighted``).

    Args:
        init_from: the student: model or Hugging Face directory, GGUF file or Hub id; or an adapter directory, whose
            adapter continues training.
        teacher: as ``init_from``, of the same tokenizer.
        divergence: ReverseKL, ForwardKL, JensenShannon, or the class path of your own.
        temperature: divides the logits of both in the divergence.
        max_new_tokens: longest response, tokens.
        policy_evaluation: samples of the student at validation; ``policy/kl`` is its KL to the teacher.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        lora: train adapters with these settings and freeze the student's weights; None: train the weights.
        compile: torch.compile the student; the first step then takes about a minute.
        memory: settings that save memory.
        network: a student built in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is out of range.
    """

    network: GPT
    frozen_names = ("teacher",)

    def __init__(
        self,
        init_from: str | None = None,
        teacher: str = "",
        *,
        divergence: Divergence = ReverseKL(),  # noqa: B008 (frozen)
        temperature: float = 1.0,
        max_new_tokens: int = 128,
        policy_evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig(),  # noqa: B008 (frozen)
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings; the networks are loaded in ``build``."""
        load_student = initial_network("OnPolicyDistill", init_from, network, GPT, lora)
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        check_settings("OnPolicyDistill", teacher, temperature)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
        self._load_student, self.teacher_source = load_student, teacher
        self.divergence, self.temperature, self.max_new_tokens = divergence, temperature, max_new_tokens
        self.policy_evaluation = PolicyEvaluation(policy_evaluation)
        self.work = dict.fromkeys(("samples", "tokens_sampled", "tokens_trained", "flops"), 0)

    def build(self) -> None:
        """Load student and teacher."""
        self.network = self._load_student()
        self.teacher = load_start(self.teacher_source, GPT, None)

    def sources(self) -> dict[str, object]:
        """See ``Stage.sources``."""
        return {**super().sources(), "teacher": self.teacher_source}

    def reward_columns(self, split: str) -> tuple[str, ...]:
        """Of the judge of policy evaluation, in validation; see ``Stage``."""
        return columns_read((self.policy_evaluation.config.judge,)) if split == "validation" else ()

    def setup(self, stage: str) -> None:
        """Check that data, student and teacher fit together; see ``Stage.setup``.

        Raises:
            ValueError: they don't, or the teacher's context is shorter than the rows.
        """
        super().setup(stage)
        check_networks(self, self.teacher_source, self.teacher)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
            Preempted: the run was preempted while it sampled; the step starts again when it resumes.
        """
        rows = self._rows(batch)  # 1
        tokens = torch.tensor(sum(rows[2]) - sum(rows[1]), device=batch.ids.device)
        self._count_work(rows[2], int(tokens))
        states = response_states(self.network, *rows)  # 2
        with torch.no_grad():
            theirs = response_states(self.teacher, *rows)
        loss = divergence_at(  # 3
            self.network,
            self.teacher,
            states,
            theirs,
            self.divergence,
            temperature=self.temperature,
            tokenizer=data_tokenizer(self),
        )
        length = tokens / len(rows[1])
        means = self.mean_over_ranks({"train/loss": loss / tokens, "train/length": length}, tokens)
        self.log_dict(means, prog_bar=True)
        self.refuse_nonfinite(means["train/loss"])
        return self.weighted(loss, tokens)  # 4

    @torch.no_grad()
    def _rows(self, batch: PromptBatch) -> tuple[torch.Tensor, list[int], list[int]]:
        """Prompts with sampled responses: ids ``[B, T]``, tokens of each prompt, and of each row."""
        pairs = zip(batch.ids.tolist(), batch.lengths.tolist(), batch.numbers.tolist(), strict=True)
        prompts = [(ids[:length], number) for ids, length, number in pairs if length]
        tokenizer = data_tokenizer(self)
        if tokenizer is None:
            raise ValueError("OnPolicyDistill needs a data module with a tokenizer, which knows what ends a response")
        mesh = self.device_mesh
        alone = mesh is None or mesh["tensor_parallel"].size() == 1
        with preemptible(self.trainer, alone=alone) as break_off, gathered(self.network) as student:
            sampled = sample_responses(
                student,
                tokenizer,
                [ids for ids, _ in prompts],
                SamplingConfig(temperature=1.0, max_new_tokens=self.max_new_tokens),
                seeds=[response_seed(self._seed, batch_index(self.trainer), number) for _, number in prompts],
                on_step=break_off,
            )
        rows = [[*ids, *response] for (ids, _), response in zip(prompts, sampled.ids, strict=True)]
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=batch.ids.device)
        return padded, [len(ids) for ids, _ in prompts], [len(row) for row in rows]

    def _count_work(self, lengths: list[int], tokens: int) -> None:
        """Add to ``work``: responses, tokens sampled, those trained beside the prompts, and the teacher's FLOPs."""
        flops = self.teacher.flops_per_token(round(sum(lengths) / len(lengths)), forward_only=True) * sum(lengths)
        here = torch.tensor([len(lengths), tokens, tokens, int(flops)], device=self.device)
        totals = self.reduce(here, "sum").tolist()
        self.work = {name: done + new for (name, done), new in zip(self.work.items(), totals, strict=True)}

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample responses to validation prompts."""
        rows = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
        prompts = [ids[:length] for ids, length in rows]
        self.policy_evaluation.update(
            self.network, self.teacher, prompts, batch.prompts, data_tokenizer(self), columns=batch.columns
        )

    def on_validation_epoch_end(self) -> None:
        """Log ``policy/*``; the KL is that of the student to the teacher."""
        values = self.policy_evaluation.compute()
        self.policy_evaluation.reset()
        self.log_dict({f"policy/{name}": value for name, value in values.items()}, prog_bar=True)
