"""A byte-level BPE tokenizer as data, and as Hugging Face's files.

The files are tokenizer.json, tokenizer_config.json and chat_template.jinja. The first writes tokens in GPT-2's byte
alphabet (openai/gpt-2, ``bytes_to_unicode``), which has one printable character per byte: printable Latin-1 bytes stand
for themselves, the others, in order, are U+0100 and up.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.tokenizer.bpe import Pair
from align.tokenizer.splitting import PATTERNS, Split, split_words

PLAIN_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
"""tokenizer_config.json of any tokenizer that its tokenizer.json describes completely"""

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_TOKEN_FIELDS = ("id", "content", "special", "lstrip", "rstrip", "normalized")

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_ORDER = bytes(_PRINTABLE + _OTHERS)
"""The 256 bytes sorted by their character: ids 0 to 255 of GPT-2, of Hugging Face's trainer, and of ours"""

_TO_CHARS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)}
_TO_BYTES = {ord(char): byte for byte, char in _TO_CHARS.items()}


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text itself, before BPE."""

    id: int
    """Its id"""
    content: str
    """The text it stands for"""
    special: bool = True
    """True: only chat templates produce it; False: ordinary text with its content does too"""
    lstrip: bool = False
    """Its match includes the whitespace before it"""
    rstrip: bool = False
    """Its match includes the whitespace after it"""
    normalized: bool = False
    """It is matched after normalization; only kept for the file, as it makes no difference to ASCII content"""


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything that decides the ids of a byte-level BPE tokenizer."""

    vocab: dict[bytes, int]
    """Id of each token that BPE produces"""
    ranks: dict[Pair, int]
    """Rank of each pair of ids that is merged, from 0"""
    made: list[int]
    """Id that the pair of each rank becomes"""
    splits: tuple[Split, ...]
    """How text is split into words"""
    added: tuple[AddedToken, ...] = ()
    """Special and other added tokens, by id"""
    nfc: bool = False
    """Text is normalized to Unicode NFC first (Qwen)"""
    ignore_merges: bool = False
    """A word that is a token becomes that token without merging (Llama-3)"""
    post_processor: dict[str, Any] | None = None
    """What other readers add around a text, as in tokenizer.json; ours add nothing"""
    config: dict[str, Any] = field(default_factory=dict)
    """tokenizer_config.json without the chat template"""
    chat_template: str | None = None
    """Jinja source"""

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids, in hexadecimal."""
        digest = hashlib.sha256()
        tokens = sorted((number, token.hex()) for token, number in self.vocab.items())
        merges = [(a, b, self.made[rank]) for (a, b), rank in self.ranks.items()]
        added = [(t.id, t.content, t.special, t.lstrip, t.rstrip) for t in self.added]
        for part in (tokens, merges, self.splits, added, self.nfc, self.ignore_merges, self.chat_template):
            digest.update(json.dumps(part).encode())
        return digest.hexdigest()


def bytes_to_chars(data: bytes) -> str:
    """Write bytes in the byte alphabet."""
    return data.decode("latin-1").translate(_TO_CHARS)


def chars_to_bytes(text: str) -> bytes:
    """Read bytes written in the byte alphabet.

    Raises:
        ValueError: a character is not in the alphabet.
    """
    try:
        return bytes([_TO_BYTES[ord(char)] for char in text])
    except KeyError as error:
        raise ValueError(f"{chr(error.args[0])!r} in token {text!r} is not a byte-level character") from None


def read_spec(source: str | Path) -> TokenizerSpec:
    """See `Tokenizer.load`."""
    path = Path(source)
    if not path.exists():
        path = _from_hub(str(source))
    directory = path if path.is_dir() else path.parent
    file = directory / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{directory} has no tokenizer.json")
    spec = _parse(_read_object(file), file)
    config = _read_object(directory / "tokenizer_config.json", missing_ok=True)
    for name, value in _read_object(directory / "special_tokens_map.json", missing_ok=True).items():
        config.setdefault(name, value)
    template = config.pop("chat_template", None)
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if (directory / "chat_template.jinja").is_file():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    return TokenizerSpec(**{**spec, "config": config, "chat_template": template})


def write_spec(spec: TokenizerSpec, directory: Path) -> None:
    """See `Tokenizer.save`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = PLAIN_CONFIG | spec.config
    if spec.chat_template is not None:
        config["chat_template"] = spec.chat_template
    _write_object(directory / "tokenizer.json", _describe(spec))
    _write_object(directory / "tokenizer_config.json", config)


def _describe(spec: TokenizerSpec) -> dict[str, Any]:
    """The content of tokenizer.json."""
    name_of = {number: bytes_to_chars(token) for token, number in spec.vocab.items()}
    steps: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": split.pattern},
            "behavior": "Isolated" if split.keep_gaps else "Removed",
            "invert": not split.keep_gaps,
        }
        for split in spec.splits
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {name: getattr(token, name) for name in _TOKEN_FIELDS} | {"single_word": False} for token in spec.added
        ],
        "normalizer": {"type": "NFC"} if spec.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": spec.post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": spec.ignore_merges,
            "vocab": {name_of[number]: number for number in sorted(name_of)},
            "merges": [[name_of[a], name_of[b]] for a, b in spec.ranks],
        },
    }


def _parse(data: dict[str, Any], file: Path) -> dict[str, Any]:
    """The fields of a `TokenizerSpec` that tokenizer.json contains."""
    try:
        model = data["model"]
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"the model is {model['type']}")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(name):
                raise ValueError(f"model.{name} is {model[name]!r}")
        added = tuple(_parse_added(token) for token in data.get("added_tokens") or ())
        nfc = _parse_normalizer(data.get("normalizer"))
        splits = _parse_pre_tokenizer(data.get("pre_tokenizer"))
        added_ids = {token.id for token in added}
        vocab = {_to_bytes(name, number, added_ids): number for name, number in model["vocab"].items()}
        ranks, made = _parse_merges(model["merges"], model["vocab"], vocab)
        split_words("", splits)
    except ValueError as error:
        raise ValueError(f"{file}: not a byte-level BPE tokenizer that align can read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged: {type(error).__name__}: {error}") from None
    return {
        "vocab": vocab,
        "ranks": ranks,
        "made": made,
        "splits": splits,
        "added": added,
        "nfc": nfc,
        "ignore_merges": bool(model.get("ignore_merges")),
        "post_processor": data.get("post_processor"),
    }


def _to_bytes(name: str, number: int, added_ids: set[int]) -> bytes:
    """The bytes of a token in the vocabulary; added tokens may be listed there by their content."""
    return name.encode() if number in added_ids else chars_to_bytes(name)


def _parse_added(token: dict[str, Any]) -> AddedToken:
    if token.get("single_word"):
        raise ValueError(f"added token {token['content']!r} has single_word")
    return AddedToken(**{name: token[name] for name in _TOKEN_FIELDS if name in token})


def _parse_merges(
    merges: list[Any], names: dict[str, int], vocab: dict[bytes, int]
) -> tuple[dict[Pair, int], list[int]]:
    """Ranks and results of merges, each ``"a b"`` or ``["a", "b"]``."""
    ranks: dict[Pair, int] = {}
    made: list[int] = []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        result = names.get(left + right)
        if left not in names or right not in names or result is None:
            raise ValueError(f"merge {rank} ({left!r}, {right!r}) has tokens outside the vocabulary")
        ranks[names[left], names[right]] = rank
        made.append(result)
    return ranks, made


def _parse_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Whether text is normalized to NFC."""
    if normalizer is None:
        return False
    steps = normalizer.get("normalizers", [normalizer])
    for step in steps:
        if step["type"] != "NFC":
            raise ValueError(f"the normalizer {step['type']} is not supported")
    return bool(steps)


def _parse_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> tuple[Split, ...]:
    """How text is split into words."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise ValueError("the last pre-tokenizer is not ByteLevel")
    splits = []
    for step in steps:
        if step["type"] == "ByteLevel":
            if step.get("add_prefix_space"):
                raise ValueError("ByteLevel has add_prefix_space")
            if step.get("use_regex", True):
                splits.append(Split(PATTERNS["gpt2"]))
        elif step["type"] == "Digits":
            splits.append(Split(r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
        elif step["type"] == "Split":
            splits.append(_parse_split(step))
        else:
            raise ValueError(f"the pre-tokenizer {step['type']} is not supported")
    return tuple(splits)


def _parse_split(step: dict[str, Any]) -> Split:
    pattern = step["pattern"]
    expression = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    behaviour, invert = step["behavior"], bool(step.get("invert"))
    if behaviour == "Isolated":
        return Split(expression)
    if behaviour == "Removed" and invert:
        return Split(expression, keep_gaps=False)
    raise ValueError(f"the Split pre-tokenizer has behavior {behaviour} with invert {invert}")


def _read_object(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: contains {type(data).__name__}; it must contain a JSON object")
    return data


def _write_object(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _from_hub(name: str) -> Path:
    """Directory of the tokenizer files of ``owner/name``, downloaded unless they are in the local cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name}: no such file or directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name}: no such directory, and not available from the Hub: {reason}") from None
