import json
from pathlib import Path

import pytest
from peers import CORPUS, SENTENCES, peer_trained
from tokenizers import AddedToken as PeerAddedToken
from tokenizers import Tokenizer as PeerTokenizer
from tokenizers import normalizers, processors

from align.tokenizer import Tokenizer, train_tokenizer

LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}"
)


def _write(directory: Path, peer: PeerTokenizer, config: dict) -> Path:
    directory.mkdir()
    peer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config)
    )
    return directory


@pytest.fixture(scope="session")
def gpt2_directory(tmp_path_factory) -> Path:
    """As GPT-2's: ByteLevel with its own pattern, merges as strings, one special token."""
    peer = peer_trained(None)
    peer.add_special_tokens(["<|endoftext|>"])
    peer.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    directory = _write(tmp_path_factory.mktemp("gpt2") / "model", peer, {"bos_token": end, "eos_token": end})
    file = directory / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    file.write_text(json.dumps(data))
    return directory


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory) -> Path:
    """As Llama-3's: Split and ByteLevel, ignore_merges, a post-processor that puts bos first, no bos in the config."""
    peer = peer_trained(LLAMA_PATTERN)
    # A token that no merge makes, which only ignore_merges can give.
    data = json.loads(peer.to_str())
    data["model"]["ignore_merges"] = True
    data["model"]["vocab"]["zqxjk"] = len(data["model"]["vocab"])
    peer = PeerTokenizer.from_str(json.dumps(data))
    begin = "<|begin_of_text|>"
    peer.add_special_tokens(
        [
            begin,
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|finetune_right_pad_id|>",
        ]
    )
    peer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(f"{begin} $A", f"{begin} $A {begin} $B", [(begin, peer.token_to_id(begin))]),
        ]
    )
    directory = _write(tmp_path_factory.mktemp("llama") / "model", peer, {"eos_token": "<|end_of_text|>"})
    config = json.loads((directory / "tokenizer_config.json").read_text())
    added = {"__type": "AddedToken", "content": begin, "lstrip": False, "rstrip": False, "single_word": False}
    config |= {"bos_token": added | {"normalized": False, "special": True}, "chat_template": LLAMA_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def qwen_directory(tmp_path_factory) -> Path:
    """As Qwen's: NFC, added tokens that are not special, no bos, eos is the end of turn, template in its own file."""
    peer = peer_trained(QWEN_PATTERN)
    peer.normalizer = normalizers.NFC()
    peer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    peer.add_tokens([PeerAddedToken("<think>", normalized=False), PeerAddedToken("</think>", normalized=False)])
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    directory = _write(tmp_path_factory.mktemp("qwen") / "model", peer, config)
    (directory / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS, vocab_size=600)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES
