"""Mutated records, chat templates and tokenizer files: no traceback, no silent loss.

    python benchmarks/fuzz.py [--records 70000] [--templates 20000] [--tokenizers 10000] [--seed 0] [--out FILE]

Records of every published format are mutated as JSON (keys dropped, renamed and doubled, values of other types,
nesting) and as bytes, written to files, and read as training reads them with ``on_bad_record: skip``. Every line must
be counted as used or bad, and every text of a record that is used must be in the decoded ids of its row, or be named in
the report: as a column that nothing reads, or as something that the chat template does not render.

Mutated templates and tokenizer files are refused in one line, or give the ids of transformers and of `tokenizers`. What
only align reads is counted as ``lenient``: a tokenizer file with damage in a part that decides no id.

A finding is an error of another type than ValueError or OSError, an error of several lines, a wrong count, lost text or
other ids. Each is printed with the number that reproduces it: ``--seed S --only KIND:NUMBER``.
"""

import argparse
import json
import random
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import chat_templates
from measure import machine
from tokenizers import Tokenizer as PeerTokenizer
from transformers import PreTrainedTokenizerFast

from align.data.formats.chats import CHAT_FORMATS
from align.data.formats.feedback import FEEDBACK_FORMATS, Feedback
from align.data.formats.fields import ChatRecord
from align.data.formats.pairs import PAIR_FORMATS, Pair
from align.data.formats.prompt_records import PROMPT_FORMATS
from align.data.formats.record_format import detect
from align.data.readers import BadRecords, ReadFields, find_sources
from align.tokenizer import Tokenizer, train_tokenizer

USER = {"role": "user", "content": "What is two plus two?"}
ASSISTANT = {"role": "assistant", "content": "Four, said the fox."}
HUMAN, GPT = {"from": "human", "value": "What is two plus two?"}, {"from": "gpt", "value": "Four, said the fox."}
RECORDS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (CHAT_FORMATS, {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]}),
    (CHAT_FORMATS, {"messages": [USER, ASSISTANT | {"weight": 1}, USER, ASSISTANT], "source": "web"}),
    (CHAT_FORMATS, {"prompt": "What is two plus two?", "completion": "Four, said the fox."}),
    (CHAT_FORMATS, {"prompt": [USER], "completion": [ASSISTANT]}),
    (CHAT_FORMATS, {"instruction": "Add these.", "input": "2 and 2", "output": "4", "system": "Be brief."}),
    (CHAT_FORMATS, {"instruction": "Add.", "output": "4", "history": [["hello there", "good day"]]}),
    (CHAT_FORMATS, {"conversations": [HUMAN, GPT], "system": "Be brief."}),
    (PAIR_FORMATS, {"prompt": "What is two plus two?", "chosen": "Four, said the fox.", "rejected": "Five of them."}),
    (PAIR_FORMATS, {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT | {"content": "Five of them."}]}),
    (PAIR_FORMATS, {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "Five of them."}]}),
    (
        PAIR_FORMATS,
        {
            "chosen": "\n\nHuman: What is two?\n\nAssistant: Half of four.",
            "rejected": "\n\nHuman: What is two?\n\nAssistant: A number.",
        },
    ),
    (PAIR_FORMATS, {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT | {"value": "Five of them."}}),
    (FEEDBACK_FORMATS, {"prompt": "What is two plus two?", "completion": "Four, said the fox.", "label": True}),
    (PROMPT_FORMATS, {"prompt": "What is two plus two?", "answer": "four"}),
    (PROMPT_FORMATS, {"prompt": [USER]}),
    (PROMPT_FORMATS, {"question": "What is two plus two?", "answer": "#### 4"}),
)
OTHERS: tuple[Any, ...] = (
    None, "", " ", "other text", 0, 1, -3, 2.5, True, False, [], {}, [None], [[]], [[[1]]], {"a": {"b": 1}}, "\ud800",
    10**400, float("nan"), "<|end|>", "\u0000", ["user"], {"role": "user"}, "e\u0301", "\ufeff", [USER], "a" * 5000,
)  # fmt: skip
RENAMED = ("text", "Messages", "label", "weight", "tools", "name", "system", "tool_calls", "thinking", "extra")
NAMES = {"role", "from", "type", "weight", "label", "source"}
"""Keys whose texts are not content"""


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one change somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key, copy = rng.choice(list(value)), dict(value)
        what = rng.randrange(6)
        if what == 0:
            del copy[key]
        elif what == 1:
            copy[rng.choice(["text", "Messages", "label", "weight", "tools", "name", "system", key + "_"])] = copy.pop(
                key
            )
        elif what == 2:
            copy[rng.choice(["label", "weight", "tools", "tool_calls", "name", "thinking", "extra"])] = rng.choice(
                OTHERS
            )
        else:
            copy[key] = mutated(copy[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.8:
        index, items = rng.randrange(len(value)), list(value)
        what = rng.randrange(5)
        if what == 0:
            del items[index]
        elif what == 1:
            items.insert(index, items[index])
        elif what == 2:
            rng.shuffle(items)
        else:
            items[index] = mutated(items[index], rng)
        return items
    if isinstance(value, str) and value and rng.random() < 0.5:
        return mutated_text(value, rng)
    return rng.choice(OTHERS)


def mutated_text(text: str, rng: random.Random) -> str:
    """A text with a part removed, doubled, replaced or moved."""
    first = rng.randrange(len(text) + 1)
    last = min(len(text), first + rng.choice((1, 1, 2, 5, 20)))
    part = text[first:last]
    new = rng.choice(["", part * 2, rng.choice(string.printable), part[::-1], "<|end|>", "\n\nAssistant:", "é", "\r\n"])
    return text[:first] + new + text[last:]


def line_of(number: int, seed: int) -> tuple[int, bytes]:
    """The base record that a line comes from, and its bytes; a line may be damaged as bytes too."""
    rng = random.Random(f"{seed} {number}")
    base = rng.randrange(len(RECORDS))
    record: Any = RECORDS[base][1]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        record = mutated(record, rng)
    data = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1 and data:
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.randrange(256)]) * rng.choice((0, 1, 3)) + data[place + rng.choice((0, 1)) :]
    return base, data.replace(b"\n", b" ").replace(b"\r", b" ") or b"0"


class Findings:
    """What went wrong, and how often."""

    def __init__(self, shown: int = 20) -> None:
        self.counts: Counter[str] = Counter()
        self.shown = shown

    def add(self, kind: str, number: int, what: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= self.shown:
            print(f"{kind}:{number}: {what[:400]}", flush=True)

    def error(self, kind: str, number: int, error: Exception) -> None:
        """An error that a user would see; one line of ValueError or OSError is no finding."""
        if not isinstance(error, ValueError | OSError) or isinstance(error, UnicodeError):
            self.add(kind, number, f"{type(error).__name__}: {error}")
        elif "\n" in str(error) or "\r" in str(error):
            self.add(kind, number, f"an error of several lines: {error!r}")


def texts_in(value: Any, key: str = "") -> Iterator[str]:
    """Texts inside a value that are content."""
    if isinstance(value, str):
        if key not in NAMES and value.strip():
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_in(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner, key)


def rendered(content: Any, tokenizer: Tokenizer) -> tuple[str, tuple[str, ...]]:
    """The text that a model reads of a record's content, and what its template leaves out."""
    if isinstance(content, Pair | Feedback):
        responses = (content.chosen, content.rejected) if isinstance(content, Pair) else (content.response,)
        chat = tokenizer.render_chat(content.prompt, tools=content.tools, add_generation_prompt=True)
        tails = [tokenizer.decode(tokenizer.encode(response)) for response in responses]
        return "\n".join([tokenizer.decode(chat.ids), *tails]), chat.dropped
    assert isinstance(content, ChatRecord)
    chat = tokenizer.render_chat(content.messages, tools=content.tools)
    return tokenizer.decode(chat.ids), chat.dropped


def fuzz_records(numbers: Sequence[int], seed: int, folder: Path, findings: Findings) -> Counter[str]:
    """Read mutated records, a file for each base record."""
    tokenizer = train_tokenizer([json.dumps([record for _, record in RECORDS])] * 2, vocab_size=400)
    lines: dict[int, list[tuple[int, bytes]]] = {}
    for number in numbers:
        base, data = line_of(number, seed)
        lines.setdefault(base, []).append((number, data))
    outcome: Counter[str] = Counter()
    for base, rows in lines.items():
        file = folder / f"records-{base}.jsonl"
        file.write_bytes(b"".join(data + b"\n" for _, data in rows))
        formats = RECORDS[base][0]
        chosen = detect(RECORDS[base][1], formats)
        bad = BadRecords("skip")
        for record in find_sources(str(file))[0].records(bad):
            number = rows[int(record.location.split()[1]) - 1][0]
            fields = ReadFields(record.fields)
            try:
                content = chosen.read(fields)
                text, dropped = rendered(content, tokenizer)
            except RecursionError:
                bad.add(record.source, record.location, "nested too deeply")
                continue
            except Exception as error:
                findings.error("records", number, error)
                bad.add(record.source, record.location, str(error))
                continue
            bad.use(fields)
            unread = set(fields.unread())
            for name, value in record.fields.items():
                if name in unread or name in NAMES:
                    continue
                lost = [one for one in texts_in(value) if _squeezed(one) not in _squeezed(text)]
                if lost and not dropped and "HH" not in type(chosen).__name__:
                    findings.add("records", number, f"field {name!r}: {lost[0]!r} is in no id of {text!r}")
        filled = sum(bool(data.strip()) for _, data in rows)
        if bad.used + bad.count != filled:
            findings.add("records", rows[0][0], f"{bad.used} used + {bad.count} bad records of {filled} lines")
        outcome["used"] += bad.used
        outcome["refused"] += bad.count
    return outcome


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def fuzz_templates(numbers: Sequence[int], seed: int, folder: Path, findings: Findings) -> Counter[str]:
    """Render conversations with mutated templates, in align and in transformers."""
    base = chat_templates.base_tokenizer().to_str()
    loaded = []
    for index, style in enumerate(chat_templates.styles()):
        loaded.append((style, *chat_templates.load_both(style, base, folder / f"style-{index}")))
    outcome: Counter[str] = Counter()
    for number in numbers:
        rng = random.Random(f"{seed} template {number}")
        style, tokenizer, peer = loaded[rng.randrange(len(loaded))]
        source = style.template
        for _ in range(rng.choice((1, 1, 2, 3))):
            source = mutated_text(source, rng)
        messages = [USER, ASSISTANT, USER, ASSISTANT][: rng.choice((2, 4))]
        if "system" in style.features and rng.random() < 0.5:
            messages = [{"role": "system", "content": "Be brief."}, *messages]
        try:
            ours = Tokenizer(replace(tokenizer.spec, chat_template=source)).render_chat(messages).ids
        except Exception as error:
            findings.error("templates", number, error)
            outcome["refused"] += 1
            continue
        outcome["rendered"] += 1
        theirs = _peer_ids(peer, source, messages)
        if ours != theirs:
            findings.add("templates", number, f"{style.name}: {ours} here, {theirs} in transformers; {source!r}")
    return outcome


def _peer_ids(peer: PreTrainedTokenizerFast, source: str, messages: list[dict[str, Any]]) -> list[int] | str:
    try:
        with patch("transformers.utils.chat_template_utils.datetime", chat_templates._Clock):
            encoded = peer.apply_chat_template(messages, chat_template=source, return_dict=True)
        return list(encoded["input_ids"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


PROBES = (
    "What is two plus two?",
    "naïve café\n\n  x",
    "<|im_start|>user\nhi<|im_end|>",
    "你好 😀 12345",
    " a  b\t\r\n",
)


def fuzz_tokenizers(numbers: Sequence[int], seed: int, folder: Path, findings: Findings) -> Counter[str]:
    """Load mutated tokenizer files, in align and in `tokenizers`."""
    style = chat_templates.styles()[0]
    chat_templates.load_both(style, chat_templates.base_tokenizer().to_str(), folder / "tokenizer")
    whole = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    unchanged = [Tokenizer.load(folder / "tokenizer").encode_template(probe) for probe in PROBES]
    outcome: Counter[str] = Counter()
    target = folder / "mutated"
    target.mkdir()
    for number in numbers:
        rng = random.Random(f"{seed} tokenizer {number}")
        content, settings = dict(whole), config
        part = rng.choice([*content, "config"])
        if part == "config":
            settings = mutated(config, rng)
        elif part == "model":
            content["model"] = _mutated_model(content["model"], rng)
        else:
            content[part] = mutated(content[part], rng)
        (target / "tokenizer.json").write_text(json.dumps(content), errors="surrogatepass")
        (target / "tokenizer_config.json").write_text(json.dumps(settings), errors="surrogatepass")
        try:
            ours = Tokenizer.load(target)
            ids = [ours.encode_template(probe) for probe in PROBES]
        except Exception as error:
            findings.error("tokenizers", number, error)
            outcome["refused"] += 1
            continue
        outcome["loaded"] += 1
        try:
            peer = PeerTokenizer.from_file(str(target / "tokenizer.json"))
            theirs: Any = [peer.encode(probe, add_special_tokens=False).ids for probe in PROBES]
        except Exception as error:
            outcome["lenient"] += 1
            if ids != unchanged:
                findings.add("tokenizers", number, f"{part}: {ids} here, but tokenizers refuses it: {error}")
            continue
        if ids != theirs:
            findings.add("tokenizers", number, f"{part}: {ids} here, {theirs} in tokenizers")
    return outcome


def _mutated_model(model: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A changed BPE model: its settings, a merge or a token."""
    model = dict(model)
    part = rng.choice(["settings", "merges", "vocab"])
    if part == "merges":
        merges = list(model["merges"])
        index = rng.randrange(len(merges))
        other = rng.randrange(len(merges))
        merges[index], merges[other] = merges[other], merges[index]
        model["merges"] = merges if rng.random() < 0.5 else merges[:index] + merges[index + 1 :]
    elif part == "vocab":
        vocab = dict(model["vocab"])
        word = rng.choice(list(vocab))
        if rng.random() < 0.5:
            vocab[rng.choice(["zz", word + "x", ""])] = vocab.pop(word)
        else:
            vocab[word] = rng.choice([-1, 0, 10**9, "1", 2.5, vocab[word] + 1])
        model["vocab"] = vocab
    else:
        key = rng.choice([key for key in model if key not in ("vocab", "merges")])
        model[key] = rng.choice([*OTHERS, 0.1, "unk"])
    return model


KINDS: dict[str, Callable[[Sequence[int], int, Path, Findings], Counter[str]]] = {
    "records": fuzz_records,
    "templates": fuzz_templates,
    "tokenizers": fuzz_tokenizers,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=70_000)
    parser.add_argument("--templates", type=int, default=20_000)
    parser.add_argument("--tokenizers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="KIND:NUMBER, one input of a run with this seed")
    parser.add_argument("--out", type=Path, help="write the counts to this JSON file")
    options = parser.parse_args()
    findings, outcomes = Findings(), {}
    for kind, fuzz in KINDS.items():
        numbers: Sequence[int] = range(getattr(options, kind))
        if options.only:
            chosen, _, number = options.only.partition(":")
            numbers = [int(number)] if chosen == kind else []
        with tempfile.TemporaryDirectory() as folder:
            outcomes[kind] = dict(fuzz(numbers, options.seed, Path(folder), findings))
        print(f"{kind}: {len(numbers):,} inputs, {outcomes[kind]}, {findings.counts[kind]} findings", flush=True)
    if options.out:
        facts = {"command": " ".join(sys.argv), "machine": machine(), "date": str(date.today()), "outcomes": outcomes}
        options.out.write_text(json.dumps(facts | {"findings": dict(findings.counts)}, indent=1) + "\n")
    return 1 if findings.counts.total() else 0


if __name__ == "__main__":
    sys.exit(main())
