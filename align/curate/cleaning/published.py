"""Published filters: datatrove's, with settings that a recipe can give and words that are cheap to find.

datatrove splits texts by spaCy, for which every comma is a word, as FineWeb did (Penedo et al. 2024). Rules on words
then depend on punctuation: in dialogues too few words have a letter. Here words are what stands between spaces, as in
Dolma (Soldaini et al. 2024), which is also much faster; ``language`` chooses the other.
"""

from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from align.curate.cleaning.words import Words


class GopherRepetition(GopherRepetitionFilter):
    """Drops documents that repeat lines, paragraphs or runs of words.

    Rae et al. 2021, "Scaling language models: methods, analysis & insights from training Gopher", table A1.
    """

    def __init__(
        self,
        dup_line_frac: float | None = 0.3,
        dup_para_frac: float | None = 0.3,
        dup_line_char_frac: float | None = 0.2,
        dup_para_char_frac: float | None = 0.2,
        top_n_grams: list[tuple[int, float]] | None = None,
        dup_n_grams: list[tuple[int, float]] | None = None,
        language: str | None = None,
    ) -> None:
        """Limits, all shares of the document in [0, 1]; null leaves a rule out.

        Args:
            dup_line_frac: lines that stood before.
            dup_para_frac: paragraphs that stood before.
            dup_line_char_frac: characters in such lines.
            dup_para_char_frac: characters in such paragraphs.
            top_n_grams: n and the characters in the most frequent run of n words; null: those of the paper.
            dup_n_grams: n and the characters in all runs of n words that stood before; null: those of the paper.
            language: whose words, by spaCy, such as en; null: between spaces.
        """
        super().__init__(
            dup_line_frac,
            dup_para_frac,
            dup_line_char_frac,
            dup_para_char_frac,
            language=language or Words(),
        )
        if top_n_grams is not None:
            self.top_n_grams = tuple(top_n_grams)
        if dup_n_grams is not None:
            self.dup_n_grams = tuple(dup_n_grams)


class GopherQuality(GopherQualityFilter):
    """Drops documents that are too short or too long, or whose words, symbols and lines are not those of prose.

    Rae et al. 2021, section A.1.
    """

    def __init__(
        self,
        min_doc_words: int = 50,
        max_doc_words: int = 100_000,
        min_avg_word_length: float = 3,
        max_avg_word_length: float = 10,
        max_symbol_word_ratio: float = 0.1,
        max_bullet_lines_ratio: float = 0.9,
        max_ellipsis_lines_ratio: float = 0.3,
        min_alpha_words_ratio: float = 0.8,
        min_stop_words: int = 2,
        language: str | None = None,
    ) -> None:
        """Limits; 0 leaves a rule out.

        Args:
            min_doc_words: fewest words.
            max_doc_words: most words.
            min_avg_word_length: least mean of characters per word.
            max_avg_word_length: largest mean of characters per word.
            max_symbol_word_ratio: most hashes, and most ellipses, per word.
            max_bullet_lines_ratio: largest share of lines that begin with a bullet.
            max_ellipsis_lines_ratio: largest share of lines that end with an ellipsis.
            min_alpha_words_ratio: least share of words with a letter.
            min_stop_words: fewest different ones of the, be, to, of, and, that, have, with.
            language: whose words, by spaCy, such as en; null: between spaces.
        """
        super().__init__(
            min_doc_words,
            max_doc_words,
            min_avg_word_length,
            max_avg_word_length,
            max_symbol_word_ratio,
            max_bullet_lines_ratio,
            max_ellipsis_lines_ratio,
            min_alpha_words_ratio,
            min_stop_words,
            language=language or Words(),
        )


class FineWebQuality(FineWebQualityFilter):
    """Drops documents of lists, of lines that repeat and of lines without an end.

    Penedo et al. 2024, "The FineWeb datasets: decanting the web for the finest text data at scale", section 3.6.
    """

    def __init__(
        self,
        line_punct_thr: float = 0.12,
        line_punct_exclude_zero: bool = False,
        short_line_thr: float = 0.67,
        short_line_length: int = 30,
        char_duplicates_ratio: float = 0.01,
        new_line_ratio: float = 0.3,
        language: str | None = None,
    ) -> None:
        """Limits.

        Args:
            line_punct_thr: least share of lines that end with punctuation.
            line_punct_exclude_zero: keep documents without any such line.
            short_line_thr: largest share of short lines.
            short_line_length: characters up to which a line is short.
            char_duplicates_ratio: largest share of characters in lines that stood before.
            new_line_ratio: most line ends per word.
            language: whose words, by spaCy, such as en; null: between spaces.
        """
        super().__init__(
            None,
            line_punct_thr,
            line_punct_exclude_zero,
            None,
            short_line_thr,
            short_line_length,
            char_duplicates_ratio,
            new_line_ratio,
            language=language or Words(),
        )
