"""Kahneman-Tversky optimization: the policy learns from single responses that are labelled desirable or not.

To follow a response to its loss, read ``align/batches.py: FeedbackBatch``; ``ReferenceStage.training_step`` in
``align/algorithms/reference_stage.py``; ``KTO.policy_and_reference`` here; then ``align/objectives/feedback.py``.

Legend: B responses with feedback.
"""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from align.algorithms.reference_stage import ReferenceStage
from align.batches import FeedbackBatch
from align.objectives import FeedbackLogprobs, FeedbackLoss, FeedbackLosses, feedback, reference_point

_BALANCED = (1.0, 4 / 3)
"""Weight times count of the desirable responses over that of the undesirable ones (Ethayarajh et al. 2024, eq. 8)"""


class KTO(ReferenceStage[FeedbackBatch, FeedbackLogprobs, FeedbackLosses]):
    """Trains a policy on responses with feedback; the steps are ``ReferenceStage``'s.

    Step 2 also estimates the reference point, from mismatched responses: each prompt has a fixed counterpart, a record
    with another prompt, whose response is read after it too (``FeedbackDataset.counterparts``). As counterparts never
    change, their log-probs under the reference are computed once, together with those of the labelled responses; the
    policy reads them without gradient. The mean is over the micro-batch of all ranks.

    The first loss of a new run is half of the mean weight.

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id of the initial policy; or an adapter directory,
            whose adapter continues training.
        loss: class name of a loss in ``align/objectives/feedback.py`` (docs/kto.md compares them), or class path of
            your own; its settings are its init_args.
        kwargs: see ``ReferenceStage``.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is out of range.
    """

    metric_names = (*ReferenceStage.metric_names, "reference_point")
    loss: FeedbackLoss

    def __init__(
        self,
        init_from: str | None = None,
        *,
        loss: FeedbackLoss = feedback.KTO(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        """Store the settings; networks are built in ``build``."""
        super().__init__(init_from, loss=loss, **kwargs)

    def on_fit_start(self) -> None:
        """Load or compute the reference log-probs, and check that the weights suit the labels."""
        super().on_fit_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "label_counts"):
            self._check_balance(*data.label_counts("train"))

    def policy_and_reference(self, split: str, batch: FeedbackBatch) -> FeedbackLogprobs:
        """Steps 1 and 2: log-probs of the responses under policy and reference, and the reference point."""
        reference, reference_mismatched = self._reference_logprobs(split, batch)  # 1
        assert reference is not None
        assert reference_mismatched is not None
        point = reference.new_zeros(())
        if self.loss.needs_reference_point:
            with torch.no_grad():
                mismatched = self.response_logprobs(self.network, batch.mismatched)
            counted = batch.mismatched.lengths > 0
            point = reference_point(mismatched, reference_mismatched, counted, total=lambda x: self.reduce(x, "sum"))
        policy = self.response_logprobs(self.network, batch.labelled)  # 2
        tokens = batch.labelled.mask[:, 1:].sum(1)
        return FeedbackLogprobs(policy, reference, batch.desirable, tokens, point)

    def values(self, logprobs: FeedbackLogprobs, losses: FeedbackLosses) -> dict[str, torch.Tensor]:
        """See ``ReferenceStage``; a reward at the reference point counts half in the accuracy."""
        return {
            "loss": losses.loss,
            "accuracy": 0.5 * (1 + losses.gain.sign()),
            "logprob_chosen": logprobs.policy,
            "logprob_rejected": logprobs.policy,
            "reward_chosen": losses.reward,
            "reward_rejected": losses.reward,
            "reference_point": logprobs.reference_point.expand_as(losses.loss),
        }

    def records_of(self, batch: FeedbackBatch) -> dict[str, torch.Tensor]:
        """Metrics of chosen responses count the desirable ones, those of rejected responses the others."""
        chosen, rejected = batch.desirable, ~batch.desirable
        return {
            "logprob_chosen": chosen,
            "logprob_rejected": rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }

    def log_means(self, split: str, means: dict[str, torch.Tensor]) -> None:
        """Log the means, and the margin between both labels where there are both."""
        if "reward_chosen" in means and "reward_rejected" in means:
            means = means | {"margin": means["reward_chosen"] - means["reward_rejected"]}
        super().log_means(split, means)

    def _check_balance(self, desirable: int, undesirable: int) -> None:
        """Warn if one label outweighs the other."""
        for_desirable, for_undesirable = self.loss.weights
        if not desirable or not undesirable:
            rank_zero_warn(
                f"all {desirable + undesirable} training responses are {'desirable' if desirable else 'undesirable'}; "
                "KTO learns from the difference between desirable and undesirable ones"
            )
            return
        if not for_desirable or not for_undesirable:
            return
        ratio = for_desirable * desirable / (for_undesirable * undesirable)
        low, high = _BALANCED
        if not low / 1.01 <= ratio <= high * 1.01:
            rank_zero_warn(
                f"{desirable} training responses are desirable and {undesirable} undesirable: weight times count is "
                f"{ratio:.2f} to 1, and KTO's authors advise 1 to {high:.2f}; set loss.desirable_weight to "
                f"{for_undesirable * undesirable / desirable:.3g}, or loss.undesirable_weight to "
                f"{for_desirable * desirable / undesirable:.3g}"
            )
