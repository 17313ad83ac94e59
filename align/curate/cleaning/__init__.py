"""From raw files to a corpus: the recipe of ``align data clean``, its steps, where they run, and its report.

Readers, filters and executors are datatrove's; a recipe names them by class path beside the classes here. Everything in
this package needs the extra ``curate``. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BookText": "align.curate.cleaning.readers",
    "CodeQuality": "align.curate.cleaning.filters",
    "Decontaminate": "align.curate.cleaning.decontamination",
    "ExactDuplicates": "align.curate.cleaning.duplicates",
    "FineWebQuality": "align.curate.cleaning.published",
    "GopherQuality": "align.curate.cleaning.published",
    "GopherRepetition": "align.curate.cleaning.published",
    "JsonLines": "align.curate.cleaning.readers",
    "Language": "align.curate.cleaning.filters",
    "Local": "align.curate.cleaning.executors",
    "MainText": "align.curate.cleaning.extraction",
    "MaskPersonalData": "align.curate.cleaning.masking",
    "NearDuplicates": "align.curate.cleaning.duplicates",
    "Ray": "align.curate.cleaning.executors",
    "Slurm": "align.curate.cleaning.executors",
    "TextFiles": "align.curate.cleaning.readers",
    "WikipediaDump": "align.curate.cleaning.readers",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from align.curate.cleaning.decontamination import Decontaminate as Decontaminate
    from align.curate.cleaning.duplicates import ExactDuplicates as ExactDuplicates
    from align.curate.cleaning.duplicates import NearDuplicates as NearDuplicates
    from align.curate.cleaning.executors import Local as Local
    from align.curate.cleaning.executors import Ray as Ray
    from align.curate.cleaning.executors import Slurm as Slurm
    from align.curate.cleaning.extraction import MainText as MainText
    from align.curate.cleaning.filters import CodeQuality as CodeQuality
    from align.curate.cleaning.filters import Language as Language
    from align.curate.cleaning.masking import MaskPersonalData as MaskPersonalData
    from align.curate.cleaning.published import FineWebQuality as FineWebQuality
    from align.curate.cleaning.published import GopherQuality as GopherQuality
    from align.curate.cleaning.published import GopherRepetition as GopherRepetition
    from align.curate.cleaning.readers import BookText as BookText
    from align.curate.cleaning.readers import JsonLines as JsonLines
    from align.curate.cleaning.readers import TextFiles as TextFiles
    from align.curate.cleaning.readers import WikipediaDump as WikipediaDump
else:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'align.curate.cleaning' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
