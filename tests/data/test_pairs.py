"""Records of pairs and prompts: every spelling of one pair, and each mistake in one line."""

import pytest

from align.data.formats import Pair, detect_pair_format, detect_prompt_format, read_pair, read_prompt
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
    """The format is told from the fields."""
    assert read_pair(record, detect_pair_format(record)) == Pair([USER], "b", "c")


def test_several_turns():
    """What precedes the last answers is the prompt, whoever said it."""
    prompt = [USER, ANSWER, {"role": "user", "content": "d\n\ne"}]
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\ne\n\nAssistant:"
    hh = {"chosen": text + " f", "rejected": text + " Human: no turn"}
    assert read_pair(hh, detect_pair_format(hh)) == Pair(prompt, "f", "Human: no turn")
    chats = {name: [SYSTEM, *prompt, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert read_pair(chats, detect_pair_format(chats)) == Pair([SYSTEM, *prompt], "chosen", "rejected")


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
    assert read_prompt(record, detect_prompt_format(record)) == [USER]


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
    ("record", "message"),
    [
        (pair(rejected="b"), "fields 'chosen' and 'rejected' are equal, so nothing is preferred"),
        (pair(rejected=[ANSWER]), "fields 'chosen' and 'rejected' are equal"),
        (pair(chosen=""), "field 'chosen' is an answer with nothing in it"),
        (pair(rejected=" \n"), "field 'rejected' is an answer with nothing in it"),
        (pair(chosen="b\ud800"), "field 'chosen' holds a lone surrogate at character 1"),
        (pair(prompt="\ud800"), "field 'prompt' holds a lone surrogate at character 0"),
        (pair(rejected=[WORSE | {"content": "\udfff"}]), r"field 'rejected\[0\].content' holds a lone surrogate"),
        (pair(chosen=3), "field 'chosen' must be text or a list of messages, found int"),
        (pair(chosen=[WORSE | {"role": "tool"}]), r"'chosen\[0\].role' is the unknown role 'tool'; known: system"),
        (pair(prompt=[{"role": "human", "content": "a"}]), r"'prompt\[0\].role' is the unknown role 'human'"),
        (pair(prompt=[USER, ANSWER]), "the prompt ends with a turn of the assistant; it must end with one of the user"),
        (pair(prompt=[SYSTEM]), "the prompt ends with a turn of the system"),
        (pair(prompt=[]), "the prompt has no message"),
        (pair(prompt=" "), "the last turn of the prompt has nothing in it"),
        (pair(chosen=[]), "'chosen' must be one turn of the assistant, .*; found turns of: none"),
        (pair(rejected=[USER, ANSWER, USER]), "'rejected' must be one turn of the assistant, .* of: assistant, user"),
        (pair(chosen=[WORSE, USER, ANSWER]), "found turns of: assistant, user, assistant"),
        (pair(prompt="x", chosen=[USER, ANSWER]), "'chosen' must be one turn .* the prompt's own messages; found"),
        ({"chosen": [USER, ANSWER], "rejected": [USER | {"content": "x"}, WORSE]}, "differ from message 1 on"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE, USER, ANSWER]}, "differ from message 2 on"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "'rejected' does not end with a turn of the assistant"),
        ({"chosen": [ANSWER], "rejected": [WORSE]}, "the prompt has no message"),
        ({"chosen": HH.format("a", "b"), "rejected": HH.format("x", "c")}, "differ from message 1 on"),
        ({"chosen": HH.format("a", "b"), "rejected": HH.format("a", "")}, "'rejected' is an answer with nothing in it"),
        ({"chosen": HH.format("a", "b"), "rejected": "\n\nHuman: a"}, "'rejected' does not end with a turn of the ass"),
        ({"chosen": "b", "rejected": "c"}, "the fields 'chosen', 'rejected' fit no preference format"),
        ({"instruction": "a"} | pair(), "fit more than one format: set format to preference or alpaca"),
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, "fit no preference format"),
    ],
)  # fmt: skip
def test_bad_pairs(load, record, message):
    """File, line, field and reason."""
    with pytest.raises(ValueError, match=r"records.jsonl: line 1: .*" + message):
        load(PreferenceData, [record])


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("preference", {"choosen": "b", "rejected": "c", "prompt": "a"}, "'chosen' is missing, did you mean 'choosen'"),
        ("preference", {"chosen": "b", "rejected": "c"}, "field 'prompt' is missing"),
        ("preference", {"chosen": [USER, ANSWER], "rejected": "c"}, "field 'prompt' is missing"),
        ("hh", {"chosen": "b", "rejected": "c"}, "field 'chosen' must begin with 'Human:', found 'b'"),
        ("hh", {"chosen": [USER], "rejected": "c"}, "field 'chosen' must be text, found list"),
        ("alpaca", {"instruction": "a", "chosen": "b"}, "field 'rejected' is missing"),
    ],
)
def test_bad_pairs_of_a_named_format(load, format, record, message):
    """A named format is not told from the fields."""
    with pytest.raises(ValueError, match=r"records.jsonl: line 1: .*" + message):
        load(PreferenceData, [record], format=format)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": ""}, "the last turn of the prompt has nothing in it"),
        ({"prompt": [USER, ANSWER]}, "the prompt ends with a turn of the assistant"),
        ({"messages": [USER, ANSWER, ANSWER]}, "the prompt ends with a turn of the assistant"),
        ({"messages": "hello"}, "field 'messages' must be a list of messages, found str"),
        ({"prompt": "a\udc00"}, "field 'prompt' holds a lone surrogate at character 1"),
        ({"prompt": "a", "messages": [USER]}, "fit more than one format: set format to prompt or messages"),
        ({"text": "a"}, r"fit no prompt format \(prompt: prompt; messages: messages; alpaca: instruction\)"),
        # bos user, the letters, end assistant: 4 tokens and the letters'.
        ({"prompt": "a" * 12}, "the prompt has 16 tokens: a context of 16 leaves no room to answer"),
    ],
)
def test_bad_prompts(load, record, message):
    """File, line, field and reason."""
    with pytest.raises(ValueError, match=r"records.jsonl: line 1: .*" + message):
        load(PromptData, [record], context=16)


def test_room_to_answer(load):
    """15 of 16 tokens leave room for one; max_prompt_tokens draws the line earlier."""
    longest = {"prompt": "a" * 11}
    assert load(PromptData, [longest], context=16).describe()["train"]["longest_prompt"] == 15
    with pytest.raises(ValueError, match=r"line 1: the prompt has 15 tokens, more than max_prompt_tokens \(14\)"):
        load(PromptData, [longest], context=16, max_prompt_tokens=14)
    for wrong in (0, 16):
        with pytest.raises(ValueError, match=f"max_prompt_tokens is {wrong}; it must be at least 1 and less than cont"):
            load(PromptData, [longest], context=16, max_prompt_tokens=wrong)


def test_skip_counts(load):
    """Two of three pairs are bad, two of three prompts are too long; the rest is used."""
    data = load(PreferenceData, [pair(rejected="b"), pair(), pair(chosen="")], on_bad_record="skip")
    assert data.describe()["train"]["pairs"] == 1
    (line,) = data._datasets["train"].corpus.meta["report"]
    assert line.startswith("left out 2 bad record(s); the first: ")
    prompts = [{"prompt": "a" * n} for n in (20, 5, 21)]
    assert load(PromptData, prompts, context=16, on_bad_record="skip").describe()["train"]["tokens"] == 9


def test_impossible_settings(load):
    """Checked as for all data."""
    for kind in (PreferenceData, PromptData):
        with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
            load(kind, [pair()], batch_size=0)
        with pytest.raises(ValueError, match="context is 1; it must be at least 2"):
            load(kind, [pair()], context=1)
        with pytest.raises(ValueError, match=r"validation: the data fill 0 row\(s\); at least 1 is needed"):
            load(kind, [pair()], val_fraction=0.5)
