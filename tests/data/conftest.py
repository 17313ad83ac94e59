"""A tokenizer without merges, whose ids can be read: GPT-2's alphabet (byte - 33 for what prints, newline 198), then
pad 256, bos 257, eos 258, system 259, user 260, assistant 261, end 262.
"""

import json

import pytest

from align.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """Directory of the tokenizer above."""
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["ab ab"], vocab_size=256 + 7).save(path)
    return str(path)


@pytest.fixture
def write(tmp_path):
    """``write(name, content)``: a file in a fresh folder, records as JSON lines; returns its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write
