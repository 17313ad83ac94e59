"""Record formats as objects: settings, checks, detection, and what a cache knows of them."""

import sys
from dataclasses import dataclass
from importlib import import_module

import pytest
from jsonargparse import ArgumentParser
from naming import naming

from align.data.formats import chats, feedback, pairs
from align.data.formats import prompt_records as prompts
from align.data.formats.fields import ChatRecord
from align.data.formats.record_format import detect
from align.data.formats.texts import Text
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData, TextData

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (chats.Messages("dialog"), {"dialog": CHAT}),
        (chats.PromptCompletion("question", "answer"), {"question": "a", "answer": "b"}),
        (chats.PromptCompletion("question", "answer"), {"question": CHAT[:1], "answer": CHAT[1:]}),
        (chats.ShareGPT(), {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        (chats.ShareGPT("talk", "who", "says"), {"talk": [{"who": "user", "says": "a"}, {"who": "gpt", "says": "b"}]}),
        (chats.Alpaca(), {"instruction": "a", "input": None, "output": "b"}),
        (chats.Dolly(), {"instruction": "a", "context": "", "response": "b", "category": "open_qa"}),
    ],
)
def test_chats(format, record):
    """Every spelling of one chat; settings name the fields."""
    assert format.fits(record)
    assert format.read(record) == ChatRecord(CHAT)


def test_settings_of_the_other_kinds():
    renamed = {"q": "a", "good": "b", "bad": "c"}
    assert pairs.Preference("q", "good", "bad").read(renamed) == pairs.Pair(CHAT[:1], "b", "c")
    for format, record in ((prompts.Prompt("q"), renamed), (prompts.Messages("dialog"), {"dialog": CHAT})):
        assert format.read(record) == ChatRecord(CHAT[:1])
    assert Text("good").read(renamed) == "b"


def test_context_follows_the_instruction():
    first = {"role": "user", "content": "Add.\n\n2+2"}
    assert chats.Alpaca().read({"instruction": "Add.", "input": "2+2", "output": "4"}).messages[0] == first
    assert chats.Dolly().read({"instruction": "Add.", "context": "2+2", "response": "4"}).messages[0] == first


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Text, [""]), (chats.PromptCompletion, ["a", "a"]), (pairs.Preference, ["prompt", "b", "b"])],
)
def test_a_format_without_names_for_its_fields(kind, settings):
    with pytest.raises(ValueError, match=naming(kind.__name__, repr(settings[-1]))):
        kind(*settings)


@pytest.mark.parametrize(
    ("formats", "records"),
    [
        (
            chats.CHAT_FORMATS,
            [{"messages": CHAT}, {"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}]
            + [{"instruction": "a", "context": "", "response": "b"}, {"conversations": CHAT}, {"chosen": "Human: a"}],
        ),
        (
            pairs.PAIR_FORMATS,
            [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"chosen": "Human: a", "rejected": "Human: b"}]
            + [{"instruction": "a", "chosen": "b", "rejected": "c"}]
            + [{"conversations": CHAT, "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"}],
        ),
        (
            feedback.FEEDBACK_FORMATS,
            [{"prompt": "a", "completion": "b", "label": False}, {"messages": CHAT, "label": 0}],
        ),
        (
            prompts.PROMPT_FORMATS,
            [{"prompt": "a"}, {"messages": CHAT}, {"instruction": "a"}, {"prompt": "Human: a"}]
            + [{"question": "a", "answer": "b"}],
        ),
    ],
)
def test_each_format_is_detected(formats, records):
    assert [detect(record, formats) for record in records] == list(formats)


def test_a_response_that_looks_like_a_dialogue():
    """HH needs a prompt that begins with Human:, or both responses."""
    assert detect({"prompt": "a", "chosen": "Human: b", "rejected": "c"}, pairs.PAIR_FORMATS) == pairs.Preference()
    assert detect({"prompt": "Human: a", "chosen": "b", "rejected": "c"}, pairs.PAIR_FORMATS) == pairs.HH()


@dataclass(frozen=True)
class _Upper(chats.Messages):
    def messages(self, record):
        return [message | {"content": message["content"].upper()} for message in super().messages(record)]


def test_identity(tmp_path, monkeypatch):
    """Class and settings decide; of a user's class its file does too."""
    formats = (chats.Messages(), chats.Messages("dialog"), prompts.Messages(), _Upper())
    assert len({str(format.identity) for format in formats}) == 4
    assert chats.Messages().identity == chats.Messages().identity
    monkeypatch.syspath_prepend(tmp_path)
    code = "from align.data.formats.chats import Messages\n\n\nclass Mine(Messages):\n    "
    seen = []
    for body in ("pass", "'''Another file.'''"):
        (tmp_path / "mine_format.py").write_text(code + body)
        sys.modules.pop("mine_format", None)
        seen.append(import_module("mine_format").Mine().identity)
    sys.modules.pop("mine_format")
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("kind", "chosen", "format"),
    [
        (TextData, "{class_path: Text, init_args: {field: body}}", Text("body")),
        (ChatData, "Alpaca", chats.Alpaca()),
        (ChatData, "{class_path: ShareGPT, init_args: {role: who}}", chats.ShareGPT(role="who")),
        (PreferenceData, "Alpaca", pairs.Alpaca()),
        (PromptData, "Alpaca", prompts.Alpaca()),
        (PromptData, "align.data.formats.prompt_records.HH", prompts.HH()),
        (ChatData, "TLDR", chats.TLDR()),
        (PreferenceData, "{class_path: TLDR, init_args: {max_post: 9}}", pairs.TLDR(9)),
        (PromptData, "TLDR", prompts.TLDR()),
        (PreferenceData, "HHText", pairs.HHText()),
        (ChatData, "null", None),
    ],
)
def test_a_recipe_selects_by_name(tokenizer_dir, tmp_path, kind, chosen, format):
    """The class named Alpaca is the one of the data module's kind."""
    parser = ArgumentParser(prog="x")
    parser.add_class_arguments(kind, "data")
    (tmp_path / "recipe.yaml").write_text(f"data: {{tokenizer: {tokenizer_dir}, train: x, format: {chosen}}}")
    assert parser.instantiate_classes(parser.parse_path(tmp_path / "recipe.yaml")).data.format == format


def test_a_format_of_another_kind_is_refused(tokenizer_dir, capsys):
    parser = ArgumentParser(prog="x")
    parser.add_class_arguments(ChatData, "data")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.tokenizer={tokenizer_dir}", "--data.train=x", "--data.format=Preference"])
    assert "data.format" in capsys.readouterr().err


SCHEMA = {"type": "function", "function": {"name": "add"}}
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def test_nothing_of_a_message_is_lost():
    """All keys stay, but nulls and empty lists; parts stay a list."""
    told = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}], "name": None, "tool_calls": []},
        {"role": "user", "content": "b", "name": "Kim"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "c"},
        {"role": "tool", "content": "4", "tool_call_id": "x", "name": "add"},
        {"role": "assistant", "content": "d", "weight": 0, "thinking": "e"},
    ]
    kept = [{key: value for key, value in message.items() if value not in (None, [])} for message in told]
    record = {"messages": told, "tools": [SCHEMA], "source": "web"}
    assert chats.Messages().read(record) == ChatRecord(kept, [SCHEMA])
    assert prompts.Messages().read(record) == ChatRecord(kept[:-1], [SCHEMA])
    pair = {"prompt": told[:4], "chosen": "a", "rejected": "b", "tools": [SCHEMA]}
    assert pairs.Preference().read(pair) == pairs.Pair(kept[:4], "a", "b", [SCHEMA])


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (chats.Alpaca(), {"instruction": "a", "output": "b"}),
        (chats.Messages(), {"messages": CHAT}),
        (chats.PromptCompletion(), {"prompt": "a", "completion": "b"}),
        (chats.ShareGPT(), {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        (prompts.Prompt(), {"prompt": "a"}),
        (prompts.Alpaca(), {"instruction": "a"}),
        (pairs.Preference(), {"prompt": "a", "chosen": "b", "rejected": "c"}),
        (pairs.Alpaca(), {"instruction": "a", "chosen": "b", "rejected": "c"}),
    ],
)
def test_a_system_prompt_beside_the_chat(format, record):
    """It becomes the first message; an empty one is none, one that is already there stays."""
    system = {"role": "system", "content": "Be brief."}
    bare, told, empty = (format.read(record | extra)[0] for extra in ({}, {"system": "Be brief."}, {"system": ""}))
    assert told == [system, *bare]
    assert bare == empty
    if "messages" in record:
        assert format.read({"messages": [system, *CHAT], "system": "Be brief."}).messages == told


def test_history():
    """The turns before an instruction."""
    record = {"instruction": "Add.", "input": "2+2", "output": "4", "system": "s", "history": [["hi", "hello"]]}
    turns = [("system", "s"), ("user", "hi"), ("assistant", "hello"), ("user", "Add.\n\n2+2"), ("assistant", "4")]
    expected = [{"role": role, "content": content} for role, content in turns]
    assert chats.Alpaca().read(record).messages == expected
    assert prompts.Alpaca().read(record).messages == expected[:-1]
