"""The settings of the doctor, its default checks, and what they find in one stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.curate.check import Check, Finding, Severity
from align.curate.checks import duplicates, networks, pairs, prompts, records, settings, texts, tokens
from align.curate.context import Context

DEFAULT_CHECKS: tuple[Check, ...] = (
    records.UnreadableFiles(),
    records.NoRecords(),
    records.DroppedRecords(),
    texts.NotUTF8(),
    networks.VocabularyTooSmall(),
    networks.OtherTokenizer(),
    networks.ContextBeyondNetwork(),
    networks.ReferenceDiffers(),
    networks.RewardFits(),
    tokens.TemplateTokens(),
    tokens.MaskTrainsNothing(),
    tokens.MaskTrainsEverything(),
    tokens.ResponsesWithoutEnd(),
    tokens.DoubleBOS(),
    settings.NoRoomForResponses(),
    settings.ValidationInterval(),
    tokens.Truncation(),
    tokens.NotRendered(),
    tokens.UnlikeSampling(),
    tokens.UnknownCharacters(),
    tokens.PadIsEnd(),
    records.EmptyResponses(),
    prompts.EmptyPrompts(),
    prompts.RenderedPrompts(),
    records.RoleOrder(),
    records.RepeatedResponses(),
    records.OtherModels(),
    pairs.EqualResponses(),
    pairs.ContradictingPairs(),
    pairs.Ties(),
    pairs.LabelBalance(),
    pairs.ContradictingLabels(),
    pairs.LengthBias(),
    duplicates.ExactDuplicates(),
    duplicates.NearDuplicates(),
    duplicates.SplitOverlap(),
    duplicates.StageOverlap(),
    texts.SpecialTokensInText(),
    texts.TurnsInResponses(),
    texts.Mojibake(),
    texts.ReplacementCharacters(),
    texts.ControlCharacters(),
    texts.Markup(),
    texts.PersonalData(),
    texts.SpaceAround(),
    settings.LearningRate(),
    settings.Warmup(),
    settings.BatchSize(),
    settings.RolloutPrompts(),
    settings.ResponseLimit(),
    records.SmallValidation(),
    records.UnreadColumns(),
    tokens.TokenLengths(),
    tokens.BytesPerToken(),
    settings.RunLength(),
    settings.Memory(),
    settings.Time(),
)
"""In the order of the report; by name, each its class's"""


class Diagnosis(NamedTuple):
    """A finding and the check that made it.

    Attributes:
        check: its name.
        severity: of the finding.
        finding: what is wrong.
    """

    check: str
    severity: Severity
    finding: Finding

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"check": self.check} | self.finding.as_dict() | {"severity": self.severity}


@dataclass(frozen=True)
class Doctor:
    """What is checked before training: by ``align doctor``, and by ``align run`` before each stage that trains.

    Raises:
        ValueError: a setting is invalid.
    """

    checks: Sequence[Check] = ()
    """Further checks, by class path; one with the name of a default check replaces it"""
    without: Sequence[str] = ()
    """Names of default checks to leave out"""
    records: int = 10_000
    """Records of each split that are tokenized and checked; 0: all"""

    def __post_init__(self) -> None:
        """Reject names that no check has."""
        known = {check.name for check in DEFAULT_CHECKS}
        for name in self.without:
            if name not in known:
                raise ValueError(f"without has {name!r}, which is no check; there are {', '.join(sorted(known))}")
        if self.records < 0:
            raise ValueError(f"records is {self.records}; it must be at least 0")

    def all_checks(self) -> list[Check]:
        """The checks by name: the defaults, with further ones after them."""
        named: Mapping[str, Check] = {check.name: check for check in (*DEFAULT_CHECKS, *self.checks)}
        return [check for name, check in named.items() if name not in self.without]

    def examine(self, context: Context) -> list[Diagnosis]:
        """What the checks find, errors first."""
        found = [
            Diagnosis(check.name, finding.severity or check.severity, finding)
            for check in self.all_checks()
            for finding in check.find(context)
        ]
        order: list[Severity] = ["error", "warning", "note"]
        return sorted(found, key=lambda one: order.index(one.severity))
