"""A tokenizer without merges, whose ids can be read: GPT-2's alphabet (byte - 33 for what prints, newline 198), then
pad 256, bos 257, eos 258, system 259, user 260, assistant 261, end 262.
"""

import json
import shutil

import pytest

from align.tokenizer import train_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


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


@pytest.fixture
def build(tokenizer_dir, write, tmp_path):
    """``build(kind, *records, **settings)``: data that were set up for training."""

    def build(kind, *records, tokenizer=tokenizer_dir, **settings):
        path = write("records.jsonl", list(records))
        data = kind(tokenizer, path, cache_dir=str(tmp_path / "cache"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return build


@pytest.fixture
def with_template(tokenizer_dir, tmp_path):
    """``with_template(before_answer)``: the tokenizer with the template above, which may open answers with a text."""

    def with_template(before_answer=""):
        opened = f"('{before_answer}' if message['role'] == 'assistant' else '') + message['content']"
        template = CHATML.replace("message['content']", opened) if before_answer else CHATML
        path = tmp_path / "templated"
        shutil.copytree(tokenizer_dir, path)
        (path / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        return str(path)

    return with_template
