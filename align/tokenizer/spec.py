"""Everything that decides a tokenizer's ids, as read from or written to its files."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from align.tokenizer.bpe import Pair
from align.tokenizer.splitting import Split

PLAIN_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
"""What tokenizer_config.json says of any tokenizer that its tokenizer.json describes wholly"""


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text itself, before BPE."""

    id: int
    """Its id"""
    content: str
    """The text that stands for it"""
    special: bool = True
    """True: only chat templates can produce it; False: ordinary text that holds its content produces it too"""
    lstrip: bool = False
    """It takes the white space before it along"""
    rstrip: bool = False
    """It takes the white space after it along"""
    normalized: bool = False
    """It is looked for after normalisation; kept for writing the file, no difference where the content is ASCII"""


@dataclass(frozen=True)
class TokenizerSpec:
    """A byte-level BPE tokenizer as data."""

    vocab: dict[bytes, int]
    """Ids of the tokens that bytes can become"""
    ranks: dict[Pair, int]
    """Rank of each pair of ids that is merged, 0 first"""
    made: list[int]
    """The id that the pair of each rank becomes"""
    splits: tuple[Split, ...]
    """How text is cut into words"""
    added: tuple[AddedToken, ...] = ()
    """Special and other added tokens, by id"""
    nfc: bool = False
    """Text is brought to Unicode normal form C first (Qwen)"""
    ignore_merges: bool = False
    """A word that is a token is that token, whatever the merges say (Llama-3)"""
    post_processor: dict[str, Any] | None = None
    """What other readers add around a text, as tokenizer.json has it; ours add nothing"""
    config: dict[str, Any] = field(default_factory=dict)
    """tokenizer_config.json without its chat template"""
    chat_template: str | None = None
    """Jinja source"""

    def fingerprint(self) -> str:
        """SHA-256, in hex, over what decides ids."""
        digest = hashlib.sha256()
        tokens = sorted((number, token.hex()) for token, number in self.vocab.items())
        merges = [(a, b, self.made[rank]) for (a, b), rank in self.ranks.items()]
        added = [(t.id, t.content, t.special, t.lstrip, t.rstrip) for t in self.added]
        for part in (tokens, merges, self.splits, added, self.nfc, self.ignore_merges, self.chat_template):
            digest.update(json.dumps(part).encode())
        return digest.hexdigest()
