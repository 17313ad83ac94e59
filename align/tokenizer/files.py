"""Read and write tokenizer.json, tokenizer_config.json and chat_template.jinja, as Hugging Face lays them out."""

import json
import re
from pathlib import Path
from typing import Any

from align.tokenizer.alphabet import bytes_to_chars, chars_to_bytes
from align.tokenizer.bpe import Pair
from align.tokenizer.spec import PLAIN_CONFIG, AddedToken, TokenizerSpec
from align.tokenizer.splitting import PATTERNS, Split, split_words

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_TOKEN_FIELDS = ("id", "content", "special", "lstrip", "rstrip", "normalized")


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
    """A tokenizer as tokenizer.json."""
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
    """The fields of a `TokenizerSpec` that tokenizer.json holds."""
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
        for byte in range(256):
            if bytes([byte]) not in vocab:
                raise ValueError(f"the vocabulary lacks the byte 0x{byte:02x}")
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
    """What a name in the vocabulary stands for; added tokens may be listed there under their plain names."""
    return name.encode() if number in added_ids else chars_to_bytes(name)


def _parse_added(token: dict[str, Any]) -> AddedToken:
    if token.get("single_word"):
        raise ValueError(f"added token {token['content']!r} has single_word")
    return AddedToken(**{name: token[name] for name in _TOKEN_FIELDS if name in token})


def _parse_merges(
    merges: list[Any], names: dict[str, int], vocab: dict[bytes, int]
) -> tuple[dict[Pair, int], list[int]]:
    """Ranks and results of merges, which are ``"a b"`` or ``["a", "b"]``."""
    ranks: dict[Pair, int] = {}
    made: list[int] = []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        result = names.get(left + right)
        if left not in names or right not in names or result is None:
            raise ValueError(f"merge {rank} ({left!r}, {right!r}) is of tokens outside the vocabulary")
        ranks[names[left], names[right]] = rank
        made.append(result)
    return ranks, made


def _parse_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Whether text is brought to form C."""
    if normalizer is None:
        return False
    steps = normalizer.get("normalizers", [normalizer])
    for step in steps:
        if step["type"] != "NFC":
            raise ValueError(f"the normalizer {step['type']} is not supported")
    return bool(steps)


def _parse_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> tuple[Split, ...]:
    """How text is cut into words."""
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
        raise ValueError(f"{file}: holds {type(data).__name__}; it must hold a JSON object")
    return data


def _write_object(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _from_hub(name: str) -> Path:
    """Fetch the tokenizer files of ``owner/name``, or find them in the local cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name}: no such file or directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name}: no such directory, and not on the Hugging Face Hub: {reason}") from None
