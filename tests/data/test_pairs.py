"""Records of pairs and prompts: every spelling of one pair, and each mistake in one line."""

import pytest
from naming import names, naming

from align.data.formats import pairs
from align.data.formats.pairs import PAIR_FORMATS, Pair
from align.data.formats.prompt_records import PROMPT_FORMATS
from align.data.formats.record_format import detect
from align.data.pair_data import PreferenceData, PromptData

USER, ANSWER, WORSE = ({"role": role, "content": text} for role, text in
                       (("user", "a"), ("assistant", "b"), ("assistant", "c")))  # fmt: skip
SYSTEM = {"role": "system", "content": "s"}
HH = "\n\nHuman: {}\n\nAssistant: {}"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [USER], "chosen": "b", "rejected": [WORSE]},
        {"prompt": "a", "chosen": [ANSWER], "rejected": [USER, WORSE]},
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"chosen": HH.format("a", "b"), "rejected": HH.format("a", "c")},
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"},
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c", "output": "d"},
    ],
)
def test_spellings_of_one_pair(record):
    """The format is detected from the fields."""
    assert detect(record, PAIR_FORMATS).read(record) == Pair([USER], "b", "c")


HUMAN = {"from": "human", "value": "a"}


@pytest.mark.parametrize(
    ("record", "system"),
    [
        ({"chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}, False),
        ({"chosen": "b", "rejected": {"from": "assistant", "value": "c"}}, False),
        ({"chosen": "b", "rejected": "c", "system": "s"}, True),
        ({"chosen": "b", "rejected": "c", "conversations": [{"from": "system", "value": "s"}, HUMAN]}, True),
    ],
)
def test_sharegpt_pairs(record, system):
    """LLaMA-Factory's schema; the system message is a field, or the first turn."""
    record = {"conversations": [HUMAN]} | record
    assert detect(record, PAIR_FORMATS).read(record) == Pair([SYSTEM, USER] if system else [USER], "b", "c")


def test_sharegpt_pairs_of_several_turns(build):
    """Tokens as in conftest.py. Responses of earlier turns are part of the prompt; the mask covers b end, c c end."""
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "d")]
    record = {
        "conversations": [{"from": name, "value": value} for name, value in turns],
        "chosen": {"from": "gpt", "value": "b"},
        "rejected": {"from": "gpt", "value": "cc"},
    }
    (batch,) = build(PreferenceData, record, context=32, batch_size=1).record_loader("train")
    a, b, c, d, s = (ord(letter) - 33 for letter in "abcds")
    prompt = [257, 259, s, 262, 260, a, 262, 261, b, 262, 260, d, 262, 261]
    rows = [[*prompt, b, 262], [*prompt, c, c, 262]]
    assert [row[:length] for row, length in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)] == rows
    assert [row.nonzero()[:, 0].tolist() for row in batch.mask] == [[14, 15], [14, 15, 16]]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"chosen": 3}, ["chosen", "int"]),
        ({"chosen": {"from": "gpt"}}, ["chosen", "value"]),
        ({"chosen": {"value": "b"}}, ["chosen", "from"]),
        ({"rejected": {"from": "human", "value": "c"}}, ["rejected", "user", "assistant"]),
        ({"rejected": {"from": "function_call", "value": "c"}}, ["rejected", "function_call"]),
        ({"rejected": {"from": "gpt", "value": "c", "weight": 0}}, ["rejected", "weight"]),
        ({"conversations": [HUMAN, {"from": "api", "value": "x"}]}, ["conversations", 2, "from", "api"]),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "x"}]}, ["prompt", "assistant"]),
        ({"conversations": []}, ["prompt"]),
        ({"conversations": "a"}, ["conversations", "str"]),
        ({"tools": "x"}, ["tools"]),
        ({"images": ["a.png"]}, ["images"]),
        ({"rejected": "b"}, ["chosen", "rejected"]),
    ],
)
def test_bad_sharegpt_pairs(load, record, named):
    """File, line, field and value."""
    record = {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"} | record
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        load(PreferenceData, [record])


def test_several_turns():
    """What precedes the last answers is the prompt, whoever said it."""
    prompt = [USER, ANSWER, {"role": "user", "content": "d\n\ne"}]
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\ne\n\nAssistant:"
    hh = {"chosen": text + " f", "rejected": text + " Human: no turn"}
    assert detect(hh, PAIR_FORMATS).read(hh) == Pair(prompt, "f", "Human: no turn")
    chats = {name: [SYSTEM, *prompt, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert detect(chats, PAIR_FORMATS).read(chats) == Pair([SYSTEM, *prompt], "chosen", "rejected")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a"},
        {"prompt": [USER]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [USER]},
        {"messages": [USER, ANSWER]},
        {"instruction": "a", "output": "b"},
        {"chosen": HH.format("a", "b"), "rejected": HH.format("a", "c")},
        {"prompt": "\n\nHuman: a\n\nAssistant:"},
    ],
)
def test_spellings_of_one_prompt(record):
    """Prompts alone, and what precedes an answer in data of other kinds."""
    assert detect(record, PROMPT_FORMATS).read(record) == ([USER], None)


@pytest.fixture
def load(tokenizer_dir, write, tmp_path):
    """``load(kind, records, **settings)``: write records.jsonl and prepare it."""

    def load(kind, records, **settings):
        data = kind(tokenizer_dir, write("records.jsonl", records), cache_dir=str(tmp_path / "cache"), **settings)
        data.setup("fit")
        return data

    return load


def pair(**fields):
    return {"prompt": "a", "chosen": "b", "rejected": "c"} | fields


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (pair(rejected="b"), ["chosen", "rejected"]),
        (pair(rejected=[ANSWER]), ["chosen", "rejected"]),
        (pair(chosen=""), ["chosen"]),
        (pair(rejected=" \n"), ["rejected"]),
        (pair(chosen="b\ud800"), ["chosen", "surrogate", 1]),
        (pair(prompt="\ud800"), ["prompt", "surrogate", 0]),
        (pair(rejected=[WORSE | {"content": "\udfff"}]), ["rejected", 1, "content", "surrogate"]),
        (pair(chosen=3), ["chosen", "int"]),
        (pair(chosen=[WORSE | {"role": "robot"}]), ["chosen", 1, "role", "robot", "system"]),
        (pair(chosen=[WORSE | {"role": "tool"}]), ["chosen", "tool", "assistant"]),
        (pair(chosen=[WORSE | {"reasoning_content": "d"}]), ["chosen", "reasoning_content"]),
        (pair(images=["a.png"]), ["images"]),
        (pair(prompt=[SYSTEM, USER], system="t"), ["system"]),
        (pair(prompt=[{"role": "human", "content": "a"}]), ["prompt", 1, "role", "human"]),
        (pair(prompt=[USER, ANSWER]), ["prompt", "assistant", "user"]),
        (pair(prompt=[SYSTEM]), ["prompt", "system"]),
        (pair(prompt=[]), ["prompt"]),
        (pair(prompt=" "), ["prompt"]),
        (pair(chosen=[]), ["chosen", "assistant"]),
        (pair(rejected=[USER, ANSWER, USER]), ["rejected", "assistant, user"]),
        (pair(chosen=[WORSE, USER, ANSWER]), ["chosen", "assistant, user, assistant"]),
        (pair(prompt="x", chosen=[USER, ANSWER]), ["chosen", "prompt", "user, assistant"]),
        ({"chosen": [USER, ANSWER], "rejected": [USER | {"content": "x"}, WORSE]}, ["chosen", "rejected", 1]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE, USER, ANSWER]}, ["chosen", "rejected", 2]),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, ["rejected", "assistant"]),
        ({"chosen": [ANSWER], "rejected": [WORSE]}, ["prompt"]),
        ({"chosen": HH.format("a", "b"), "rejected": HH.format("x", "c")}, ["chosen", "rejected", 1]),
        ({"chosen": HH.format("a", "b"), "rejected": HH.format("a", "")}, ["rejected"]),
        (
            {"prompt": "\n\nHuman: x", "chosen": HH.format("a", "b"), "rejected": HH.format("a", "c")},
            ["chosen", "prompt"],
        ),
        ({"chosen": HH.format("a", "b"), "rejected": "\n\nHuman: a"}, ["rejected", "assistant"]),
        ({"chosen": "b", "rejected": "c"}, ["chosen", "rejected", "Preference"]),
        ({"instruction": "a"} | pair(), ["format", "Preference", "Alpaca"]),
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, ["choosen", "Preference"]),
    ],
)
def test_bad_pairs(load, record, named):
    """File, line, field and value."""
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        load(PreferenceData, [record])


@pytest.mark.parametrize(
    ("format", "record", "named"),
    [
        (pairs.Preference(), {"choosen": "b", "rejected": "c", "prompt": "a"}, ["chosen", "choosen"]),
        (pairs.Preference(), {"chosen": "b", "rejected": "c"}, ["prompt"]),
        (pairs.Preference(), {"chosen": [USER, ANSWER], "rejected": "c"}, ["prompt"]),
        (pairs.HH(), {"chosen": "b", "rejected": "c"}, ["chosen", "Human:", "b"]),
        (pairs.HH(), {"chosen": [USER], "rejected": "c"}, ["chosen", "list"]),
        (pairs.Alpaca(), {"instruction": "a", "chosen": "b"}, ["rejected"]),
    ],
)
def test_bad_pairs_of_a_named_format(load, format, record, named):
    """A named format is not detected."""
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        load(PreferenceData, [record], format=format)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": [USER, ANSWER]}, ["prompt", "assistant"]),
        ({"messages": [USER, ANSWER, ANSWER]}, ["prompt", "assistant"]),
        ({"messages": "hello"}, ["messages", "str"]),
        ({"prompt": "ab\udc00"}, ["prompt", "surrogate", 2]),
        ({"prompt": "a", "messages": [USER]}, ["format", "Prompt", "Messages"]),
        ({"text": "a"}, ["text", "Prompt", "Messages", "Alpaca", "instruction"]),
        # bos user, the letters, end assistant: 4 tokens and the letters'.
        ({"prompt": "a" * 13}, ["prompt", 17, "context", 16]),
    ],
)
def test_bad_prompts(load, record, named):
    """File, line, field and value."""
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        load(PromptData, [record], context=16)


def test_room_to_answer(load):
    """15 of 16 tokens leave room for one; max_prompt_tokens draws the line earlier."""
    longest = {"prompt": "a" * 11}
    assert load(PromptData, [longest], context=16).describe()["train"]["longest_prompt"] == 15
    with pytest.raises(ValueError, match=naming(1, "prompt", 15, "max_prompt_tokens", 14)):
        load(PromptData, [longest], context=16, max_prompt_tokens=14)
    for wrong in (0, 16):
        with pytest.raises(ValueError, match=naming("max_prompt_tokens", wrong, "context")):
            load(PromptData, [longest], context=16, max_prompt_tokens=wrong)


def test_skip_counts(load):
    """Two of three pairs are bad, two of three prompts are too long; the rest is used."""
    data = load(PreferenceData, [pair(rejected="b"), pair(), pair(chosen="")], on_bad_record="skip")
    assert data.describe()["train"]["pairs"] == 1
    (line,) = data._datasets["train"].corpus.meta["report"]
    assert names(line, 2, "records.jsonl", 1)
    prompts = [{"prompt": "a" * n} for n in (20, 5, 21)]
    assert load(PromptData, prompts, context=16, on_bad_record="skip").describe()["train"]["tokens"] == 9


def test_impossible_settings(load):
    """Checked as for all data."""
    for kind in (PreferenceData, PromptData):
        with pytest.raises(ValueError, match=naming("batch_size", 0)):
            load(kind, [pair()], batch_size=0)
        with pytest.raises(ValueError, match=naming("context", 1, 2)):
            load(kind, [pair()], context=1)
        with pytest.raises(ValueError, match=naming("validation", 0, 1)):
            load(kind, [pair()], val_fraction=0.5)
