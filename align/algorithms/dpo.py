"""Direct preference optimization: the policy learns from preference pairs, without a reward model.

To follow a pair to its loss, read ``align/batches.py: PairBatch``; ``ReferenceStage.training_step`` in
``align/algorithms/reference_stage.py``; ``DPO.policy_and_reference`` and ``DPO.losses`` here; then
``align/objectives/preference.py``.

Legend: B pairs.
"""

from typing import Any

import torch

from align.algorithms.reference_stage import ReferenceStage
from align.batches import PairBatch
from align.objectives import PairLogprobs, PairLosses, PreferenceLoss, preference


class DPO(ReferenceStage[PairBatch, PairLogprobs, PairLosses]):
    """Trains a policy on preference pairs, with DPO's loss or a relative of it; the steps are ``ReferenceStage``'s.

    The first loss of a new run is ln 2 with DPO's loss.

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id of the initial policy; or an adapter directory,
            whose adapter continues training.
        loss: class name of a loss in ``align/objectives/preference.py`` (docs/dpo.md compares them), or class path of
            your own; its settings are its init_args.
        sft_coef: weight of the chosen response's negative log-likelihood per token, which is added to the loss.
        kwargs: see ``ReferenceStage``.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is out of range.
    """

    metric_names = (*ReferenceStage.metric_names, "margin")
    loss: PreferenceLoss

    def __init__(
        self,
        init_from: str | None = None,
        *,
        loss: PreferenceLoss = preference.DPO(),  # noqa: B008 (frozen)
        sft_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Store the settings; networks are built in ``build``."""
        if not 0 <= sft_coef < float("inf"):
            raise ValueError(f"sft_coef is {sft_coef}; it must be at least 0")
        super().__init__(init_from, loss=loss, **kwargs)
        self.sft_coef = sft_coef

    def policy_and_reference(self, split: str, batch: PairBatch) -> PairLogprobs:
        """Steps 1 and 2: log-probs of both responses under policy and reference."""
        # The reference comes first: the policy's activations are not in memory yet, and a look-up, which waits for a
        # GPU to finish, does not wait for the policy.
        reference_chosen, reference_rejected = self._reference_logprobs(split, batch)  # 1
        chosen, rejected = self.response_logprobs(self.network, batch.rows).chunk(2)  # 2
        chosen_tokens, rejected_tokens = batch.mask[:, 1:].sum(1).chunk(2)
        return PairLogprobs(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)

    def losses(self, logprobs: PairLogprobs) -> PairLosses:
        """Step 3: ``loss``, plus ``sft_coef`` times the chosen response's NLL per token (RPO, Pang et al. 2024).

        Raises:
            ValueError: the loss returned tensors of the wrong shape.
        """
        losses = super().losses(logprobs)
        if not self.sft_coef:
            return losses
        return losses._replace(loss=losses.loss - self.sft_coef * logprobs.mean_logprobs()[0])

    def values(self, logprobs: PairLogprobs, losses: PairLosses) -> dict[str, torch.Tensor]:
        """See ``ReferenceStage``; a pair with equal rewards counts half in the accuracy."""
        margin = losses.reward_chosen - losses.reward_rejected
        return {
            "loss": losses.loss,
            "accuracy": 0.5 * (1 + margin.sign()),
            "margin": margin,
            "logprob_chosen": logprobs.chosen,
            "logprob_rejected": logprobs.rejected,
            "reward_chosen": losses.reward_chosen,
            "reward_rejected": losses.reward_rejected,
        }
