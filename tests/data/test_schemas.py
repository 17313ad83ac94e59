"""Records as public data sets have them: what is rendered, what is trained on, what is reported, or why it is refused.

Records are written by hand in the published schemas.
"""

import json
from pathlib import Path

import pytest
from naming import names, naming

from align.data.formats.chats import PromptCompletion
from align.data.formats.pairs import Preference
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData, TextData

TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|end|>"
    "{% elif m.role == 'tool' %}<|user|><result>{{ m.content }}</result><|end|>"
    "{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def with_tools(with_template):
    """Directory of a tokenizer whose template knows tools and reasoning."""
    directory = Path(with_template())
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return str(directory)


def s(text):
    return f"<|system|>{text}<|end|>"


def u(text):
    return f"<|user|>{text}<|end|>"


def a(text):
    return f"<|assistant|>{text}<|end|>"


def message(role, content, **more):
    return {"role": role, "content": content} | more


def said(who, value, **more):
    return {"from": who, "value": value} | more


ASKED, ANSWERED = message("user", "2+2?"), message("assistant", "4")
SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"x": {"type": "int"}}}}
TOOL = {"type": "function", "function": SCHEMA}
ADD = {"name": "add", "arguments": {"x": 2}}
CALL = {"id": "c1", "type": "function", "function": ADD}
CALLED = f"<call>{json.dumps(ADD)}</call>"

# Name of the data set; settings; record; the rendered chat; what is trained on; columns that are reported.
CHATS = {
    "Anthropic/hh-rlhf": (
        {},
        {
            "chosen": "\n\nHuman: Hi\nthere\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: Hi\nthere\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant: 5",
        },
        u("Hi\nthere") + a("Hello") + u("2+2?") + a("4"),
        ["Hello<|end|>", "4<|end|>"],
        ["rejected"],
    ),
    "ShareGPT": (
        {},
        {"id": "x_0", "conversations": [said("human", "2+2?"), said("gpt", "4")]},
        u("2+2?") + a("4"),
        ["4<|end|>"],
        ["id"],
    ),
    "teknium/OpenHermes-2.5": (
        {},
        {
            "conversations": [said("system", "s"), said("human", "2+2?", weight=None), said("gpt", "4", weight=1)],
            "source": "x",
            "category": None,
            "skip_prompt_formatting": False,
        },
        s("s") + u("2+2?") + a("4"),
        ["4<|end|>"],
        ["source", "skip_prompt_formatting"],
    ),
    "a weight of 0": (
        {},
        {"conversations": [said("human", "a"), said("gpt", "b", weight=0), said("human", "c"), said("gpt", "d")]},
        u("a") + a("b") + u("c") + a("d"),
        ["d<|end|>"],
        [],
    ),
    "llamafactory/glaive_toolcall_en": (
        {},
        {
            "conversations": [
                said("human", "2+2?"),
                said("function_call", json.dumps(ADD)),
                said("observation", "4"),
                said("gpt", "It is 4."),
            ],
            "tools": json.dumps([SCHEMA]),
        },
        s(json.dumps([TOOL])) + u("2+2?") + a(CALLED) + u("<result>4</result>") + a("It is 4."),
        [f"{CALLED}<|end|>", "It is 4.<|end|>"],
        [],
    ),
    "several calls": (
        {},
        {"conversations": [said("human", "a"), said("function_call", json.dumps([ADD, ADD]))], "tools": "[]"},
        u("a") + a(CALLED + CALLED),
        [f"{CALLED}{CALLED}<|end|>"],
        [],
    ),
    "NousResearch/hermes-function-calling-v1": (
        {},
        {
            "id": "x",
            "conversations": [said("system", "s"), said("human", "a"), said("gpt", "<tool_call>"), said("tool", "4")],
            "tools": json.dumps([TOOL]),
            "task": "t",
        },
        s(json.dumps([TOOL])) + s("s") + u("a") + a("<tool_call>"),
        ["<tool_call><|end|>"],
        ["id", "task"],
    ),
    "Team-ACE/ToolACE": (
        {},
        {"system": "s", "conversations": [said("user", "a"), said("assistant", "b")]},
        s("s") + u("a") + a("b"),
        ["b<|end|>"],
        [],
    ),
    "tatsu-lab/alpaca": (
        {},
        {"instruction": "Add.", "input": "", "output": "4", "text": "Below is an instruction ..."},
        u("Add.") + a("4"),
        ["4<|end|>"],
        ["text"],
    ),
    "alpaca with system and history": (
        {},
        {"instruction": "Add.", "input": "2+2", "output": "4", "system": "s", "history": [["a", "b"]]},
        s("s") + u("a") + a("b") + u("Add.\n\n2+2") + a("4"),
        ["b<|end|>", "4<|end|>"],
        [],
    ),
    "databricks/databricks-dolly-15k": (
        {},
        {"instruction": "Add.", "context": "2+2", "response": "4", "category": "closed_qa"},
        u("Add.\n\n2+2") + a("4"),
        ["4<|end|>"],
        ["category"],
    ),
    "OpenAI's files for fine-tuning": (
        {},
        {
            "messages": [
                message("system", "s"),
                message("user", "2+2?"),
                message("assistant", "5", weight=0),
                message("user", "No."),
                {"role": "assistant", "tool_calls": [CALL]},
                message("tool", "4", tool_call_id="c1"),
                message("assistant", "4", weight=1),
            ],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        s(json.dumps([TOOL]))
        + s("s") + u("2+2?") + a("5") + u("No.") + a(CALLED) + u("<result>4</result>") + a("4"),
        [f"{CALLED}<|end|>", "4<|end|>"],
        ["parallel_tool_calls"],
    ),
    "reasoning": (
        {},
        {"messages": [ASKED, ANSWERED | {"reasoning_content": "2 and 2"}]},
        u("2+2?") + a("<think>2 and 2</think>4"),
        ["<think>2 and 2</think>4<|end|>"],
        [],
    ),
    "HuggingFaceH4/ultrachat_200k": (
        {},
        {"prompt": "2+2?", "prompt_id": "x", "messages": [ASKED, ANSWERED]},
        u("2+2?") + a("4"),
        ["4<|end|>"],
        ["prompt", "prompt_id"],
    ),
    "prompt and completion": ({}, {"prompt": "2+2?", "completion": "4"}, u("2+2?") + a("4"), ["4<|end|>"], []),
    "prompt and completion as messages": (
        {},
        {"prompt": [message("user", "a"), message("assistant", "b"), ASKED], "completion": [ANSWERED], "tools": None},
        u("a") + a("b") + u("2+2?") + a("4"),
        ["4<|end|>"],
        [],
    ),
    "openai/gsm8k": (
        {"format": PromptCompletion("question", "answer")},
        {"question": "2+2?", "answer": "4"},
        u("2+2?") + a("4"),
        ["4<|end|>"],
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_chats(build, with_tools, name):
    settings, record, text, trained, reported = CHATS[name]
    data = build(ChatData, record, tokenizer=with_tools, context=999, **settings)
    corpus = data._corpus("train")
    tokens = [data.tokenizer.decode([int(number)], skip_special=False) for number in corpus.ids]
    assert "".join(tokens) == text
    runs = "".join(token if counts else "\0" for token, counts in zip(tokens, corpus.target_mask, strict=True))
    assert [run for run in runs.split("\0") if run] == trained
    assert list(corpus.meta["records"]["unread_columns"]) == reported
    _, *lines = data._summary("train")
    assert len(lines) == bool(reported)
    assert all(names(lines[0], repr(column), 1) for column in reported)


@pytest.mark.parametrize(
    ("kind", "settings", "record", "named"),
    [
        (ChatData, {}, {"query": "a", "answers": "[]", "tools": "[]"}, ["query", "answers"]),  # xLAM
        (ChatData, {}, {"message_id": "x", "text": "a", "role": "prompter"}, ["text", "role"]),  # OASST
        (ChatData, {}, {"messages": [ASKED, message("function", "4"), ANSWERED]}, [2, "function"]),
        (ChatData, {}, {"messages": [ASKED, ANSWERED | {"function_call": ADD}]}, [2, "function_call"]),
        (ChatData, {}, {"messages": [ASKED, ANSWERED], "functions": [SCHEMA]}, ["functions"]),
        (ChatData, {}, {"messages": [ASKED, ANSWERED], "tools": "add"}, ["tools"]),
        (
            ChatData,
            {},
            {"messages": [message("user", [{"type": "image_url", "image_url": "x"}]), ANSWERED]},
            [1, "image_url"],
        ),
        (ChatData, {}, {"conversations": [said("human", "a"), said("bing", "b")]}, [2, "bing", "gpt"]),
        (ChatData, {}, {"conversations": [said("human", "a"), said("function_call", "add(2)")]}, [2, "add(2)"]),
        (
            ChatData,
            {},
            {"conversations": [said("human", "a"), said("function_call", json.dumps(ADD | {"id": 1}))]},
            [2, "arguments"],
        ),
        (PreferenceData, {}, {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}, ["question"]),  # Orca
        (TextData, {}, {"texts": "a"}, ["text", "texts"]),
    ],
)
def test_refusals(build, with_tools, kind, settings, record, named):
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        build(kind, record, tokenizer=with_tools, context=999, **settings)


def test_pairs_with_scores(build):
    """HuggingFaceH4/ultrafeedback_binarized; a prompt under another name, with a system prompt beside it."""
    chosen, rejected = [ASKED, ANSWERED], [ASKED, message("assistant", "5")]
    record = {"prompt": "2+2?", "prompt_id": "x", "chosen": chosen, "rejected": rejected, "score_chosen": 8.0}
    data = build(PreferenceData, record, record | {"score_chosen": None, "messages": chosen}, context=64)
    unread = data._corpus("train").meta["records"]["unread_columns"]
    assert unread == {"prompt_id": 2, "score_chosen": 1, "messages": 1}
    record = {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}
    data = build(PreferenceData, record, format=Preference(prompt="question"), context=64)
    assert len(list(data._summary("train"))) == 1
    assert data._corpus("train").prompt(0) == ([message("system", "s"), message("user", "a")], {})


def test_columns_that_nothing_reads_are_counted(build):
    record = {"text": "a", "source": "x", "empty": "", "none": None}
    _, line = build(TextData, record, record, {"text": "b"})._summary("train")
    assert names(line, "'source'", 2)
    assert not any(names(line, word) for word in ("'empty'", "'none'", "'text'"))
    _, line = build(TextData, {"text": "a"} | {f"c{i}": 1 for i in range(100)})._summary("train")
    assert names(line, "'c9'", 90)
    assert not names(line, "'c10'")


def test_undesirable_responses_are_no_demonstrations(build):
    """Unpaired feedback in a file of chats: what is labelled undesirable is refused, or skipped."""
    good = {"prompt": "a", "completion": "b", "label": True}
    bad = good | {"completion": "c", "label": False}
    with pytest.raises(ValueError, match=naming("records.jsonl", 2, "label", "False")):
        build(ChatData, good, bad)
    data = build(ChatData, good, bad, {"messages": [ASKED, ANSWERED], "label": 0}, on_bad_record="skip")
    assert data._corpus("train").meta["records"]["used"] == 1


MIXED = {
    PreferenceData: (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"},
        ("HH", "Preference"),
    ),
    PromptData: ({"prompt": "a"}, {"prompt": "\n\nHuman: a\n\nAssistant:"}, ("HH", "Prompt")),
    ChatData: ({"instruction": "a", "output": "b"}, {"messages": [ASKED, ANSWERED]}, ("Messages", "Alpaca")),
}


@pytest.mark.parametrize("kind", MIXED)
def test_a_file_has_one_format(build, kind):
    """A record of another format than the first would be read in part: a dialogue as the text of one message."""
    first, other, formats = MIXED[kind]
    with pytest.raises(ValueError, match=naming("records.jsonl", 2, *formats)):
        build(kind, first, other, context=64)
    data = build(kind, other | dict.fromkeys(other, None), first, other, first, context=64, on_bad_record="skip")
    records = data._corpus("train").meta["records"]
    assert (records["used"], records["bad"]) == (2, 2), "a first record without values decides nothing"


def test_a_label_that_is_none_is_reported_as_a_column(build):
    """Only false and 0 refuse a demonstration, and true is what a demonstration is."""
    labels = ["false", -1, True, None]
    data = build(ChatData, *({"prompt": "a", "completion": "b", "label": label} for label in labels))
    assert data._corpus("train").meta["records"]["unread_columns"] == {"label": 2}


def test_lines_after_a_second_byte_order_mark(build, write, tokenizer_dir, tmp_path):
    """Two files that `cat` joined."""
    line = json.dumps({"text": "a"}).encode() + b"\n"
    file = write("joined.jsonl", b"\xef\xbb\xbf" + line + b"\xef\xbb\xbf" + line)
    data = TextData(tokenizer_dir, file, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=naming("joined.jsonl", 2, "byte-order mark")):
        data.prepare_data()
