"""The main text of a web page."""

from datatrove.pipeline.extractors.trafilatura import Trafilatura


class MainText(Trafilatura):
    """Replaces a page by its main text, without menus and comments; drops pages that have none.

    Trafilatura (Barbaresi 2021), as FineWeb uses it. datatrove's class with settings that a recipe can give: its own
    passes on whatever trafilatura takes.
    """

    def __init__(self, favour_precision: bool = True, timeout: float = 1, deduplicate: bool = True) -> None:
        """How to extract.

        Args:
            favour_precision: rather less text than text that does not belong to it.
            timeout: seconds for a page; one that takes longer is dropped.
            deduplicate: leave out segments that stood in earlier pages of the task.
        """
        super().__init__(favour_precision=favour_precision, timeout=timeout, deduplicate=deduplicate)
