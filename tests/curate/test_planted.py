"""Each mistake, planted into clean data, is found by its check and by no other; clean data is silent."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from curate_data import CHATML, VOCABULARY, clean
from naming import names

from align.curate.context import Context, Network, Run
from align.curate.doctor import Doctor
from align.curate.reading import kind_of, read_splits
from align.data import ChatData, FeedbackData, PromptData, TextData
from align.data.mixing import WeightedSource
from align.tokenizer import Tokenizer

CARD = "4111 1111 1111 1111"  # a test number; the check digit is right
UNMARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OWN = Network("policy", "model", VOCABULARY, 256, 10_000)


@dataclass(frozen=True)
class Case:
    """A planted mistake.

    ``plant`` changes 100 clean records in place, or returns other content of the file.
    """

    name: str
    check: str
    kind: str
    plant: Callable[[list], Any] = lambda records: None
    count: int | None = None
    severity: str = "warning"
    also: tuple[str, ...] = ()
    """Other checks that rightly find it too"""
    settings: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    networks: tuple = ()
    config: dict = field(default_factory=dict)
    """Changes of tokenizer_config.json"""
    suffix: str = "jsonl"
    held_out: Callable[[list], list] | None = None
    """Validation records, from the training records"""


def put(field: str, value: Any, *rows: int) -> Callable[[list], None]:
    """Replace a field of some records."""

    def plant(records: list) -> None:
        for row in rows or (3,):
            records[row][field] = value

    return plant


def within(field: str, text: str, *rows: int) -> Callable[[list], None]:
    """Add text to a field of some records."""

    def plant(records: list) -> None:
        for row in rows or (3,):
            records[row][field] += text

    return plant


def copied(records: list) -> None:
    records[50:55] = [dict(record) for record in records[:5]]


def nearly_copied(records: list) -> None:
    for row in range(10):
        text = records[row]["text"].split()
        records[50 + row]["text"] = " ".join([*text, "again"])


def contradicted(records: list) -> None:
    first = records[0]
    records[1] = {"prompt": first["prompt"], "chosen": first["rejected"], "rejected": first["chosen"]}


def longer(records: list) -> None:
    for record in records:
        record["chosen"] += " " + record["rejected"]


def scored(chosen: float, rejected: float) -> Callable[[list], None]:
    def plant(records: list) -> None:
        for row, record in enumerate(records):
            pair = (chosen, rejected) if row < 30 else (2.0, 1.0)
            record["score_chosen"], record["score_rejected"] = pair

    return plant


def cp1252(records: list) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records) + (
        '{"prompt": "Was ist das?", "completion": "Ein Stück Brot."}\n'.encode("cp1252")
    )


CASES = [
    # Records
    Case("no field of the format", "DroppedRecords", "chats", lambda r: r[3].pop("completion"), 1, "error"),
    Case(
        "bad records are skipped",
        "DroppedRecords",
        "chats",
        put("completion", 7, 3, 4),
        2,
        settings={"on_bad_record": "skip"},
    ),
    Case("not JSON", "DroppedRecords", "chats", lambda r: _lines(r) + b'{"prompt": \n', 1, "error"),
    Case("not UTF-8", "NotUTF8", "chats", cp1252, 1, "error", also=("DroppedRecords",)),
    Case("nothing before a response", "EmptyPrompts", "chats", put("prompt", " ", 3, 9), 2),
    Case("a rendered prompt", "RenderedPrompts", "prompts", within("prompt", "\n\nAssistant: ", 3), 1),
    Case("an empty file", "UnreadableFiles", "chats", lambda r: b"", None, "error"),
    Case("a binary file", "UnreadableFiles", "chats", lambda r: b"\x00\x01" * 50, None, "error"),
    Case("fields of no format", "DroppedRecords", "chats", lambda r: b'{"a": 1}\n' * 9, 9, "error", ("NoRecords",)),
    Case(
        "no usable record",
        "NoRecords",
        "chats",
        lambda r: b'{"prompt": "a", "completion": 1}\n' * 9,
        0,
        "error",
        also=("DroppedRecords",),
    ),
    Case("a blank response", "EmptyResponses", "chats", put("completion", "  "), 1, also=("DroppedRecords",)),
    Case("a response of dots", "EmptyResponses", "chats", put("completion", "..."), 1),
    Case(
        "a chat that the assistant begins",
        "RoleOrder",
        "chats",
        lambda r: _lines(
            [{"messages": [{"role": "user", "content": one["prompt"]}, _says(one["completion"])]} for one in r[:-1]]
            + [{"messages": [_says("Good day to you."), _says("What can be done?")]}]
        ),
        1,
    ),
    Case(
        "one response to many prompts",
        "RepeatedResponses",
        "chats",
        put("completion", "Sorry, that can not be answered here.", *range(10)),
        10,
    ),
    Case(
        "another assistant speaks of itself",
        "OtherModels",
        "chats",
        put("completion", "As an AI language model, I have no opinion.", 3),
        1,
    ),
    # Texts
    Case("mojibake", "Mojibake", "chats", within("completion", " CafÃ© â€œOlÃ©â€\x9d"), 1),
    Case("replacement characters", "ReplacementCharacters", "texts", within("text", " caf\ufffd"), 1),
    Case("zero-width spaces", "ControlCharacters", "pairs", within("chosen", "\u200b and more"), 1),
    Case("HTML", "Markup", "chats", within("completion", "<br>and &nbsp; more", 1, 2, 3), 3),
    Case("a special token of the tokenizer", "SpecialTokensInText", "chats", within("completion", "<|end|>"), 1),
    Case("a special token of another template", "SpecialTokensInText", "prompts", within("prompt", " [/INST]"), 1),
    Case("a second turn", "TurnsInResponses", "chats", within("completion", "\n\nHuman: And then?"), 1),
    Case("an email address", "PersonalData", "chats", within("prompt", " Write to jo.smith@firm.co.uk"), 1),
    Case("a phone number", "PersonalData", "texts", within("text", " Call +44 20 7946 0958 today"), 1),
    Case("an IP address", "PersonalData", "chats", within("completion", " from 8.8.4.4 at night"), 1),
    Case("a card number", "PersonalData", "chats", within("completion", f" {CARD} is it"), 1),
    Case("a key", "PersonalData", "chats", within("completion", " AKIAIOSFODNN7EXAMPLE is it"), 1),
    # Tokens and masks
    Case("prompts beyond the context", "Truncation", "chats", within("prompt", " lo" * 90, *range(8)), 8),
    Case("responses beyond the context", "Truncation", "pairs", within("chosen", " lo" * 90, *range(5)), 5),
    Case(
        "a mask that leaves the end of turn out",
        "ResponsesWithoutEnd",
        "chats",
        count=100,
        severity="error",
        config={"chat_template": UNMARKED},
    ),
    Case(
        "a template that ends no turn",
        "DroppedRecords",
        "chats",
        count=100,
        severity="error",
        config={"chat_template": CHATML.replace("<|end|>", "\n")},
        also=("NoRecords",),
    ),
    Case(
        "a template that marks everything",
        "MaskTrainsEverything",
        "chats",
        count=100,
        severity="error",
        config={
            "chat_template": "{% generation %}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + "
            "'<|end|>' }}{% endfor %}{% endgeneration %}"
        },
    ),
    Case(
        "two beginnings of text",
        "DoubleBOS",
        "chats",
        count=100,
        severity="error",
        config={"chat_template": "{{ bos_token }}<|bos|>" + CHATML},
    ),
    Case(
        "a template of another tokenizer",
        "TemplateTokens",
        "chats",
        count=20,
        also=("UnlikeSampling",),
        severity="error",
        config={"chat_template": CHATML.replace("'<|' + message['role'] + '|>'", "'<|im_start|>' + message['role']")},
    ),
    Case("padding that ends responses", "PadIsEnd", "chats", severity="note", config={"pad_token": "<|end|>"}),
    Case(
        "names that the template leaves out",
        "NotRendered",
        "chats",
        lambda r: _lines(
            [
                {"messages": [{"role": "user", "name": "Jo", "content": one["prompt"]}, _says(one["completion"])]}
                for one in r
            ]
        ),
        100,
    ),
    # Pairs
    Case(
        "equal responses",
        "EqualResponses",
        "pairs",
        lambda r: r[3].update(chosen=r[3]["rejected"]),
        1,
        settings={"on_bad_record": "skip"},
        also=("DroppedRecords",),
    ),
    Case(
        "responses that differ in case",
        "EqualResponses",
        "pairs",
        lambda r: r[3].update(chosen=r[3]["rejected"].upper()),
        1,
    ),
    Case("tied scores", "Ties", "pairs", scored(1.0, 1.0), 30),
    Case("scores against the label", "Ties", "pairs", scored(1.0, 3.0), 30),
    Case("contradicting pairs", "ContradictingPairs", "pairs", contradicted, 2),
    Case("longer chosen responses", "LengthBias", "pairs", longer, 100),
    # Duplicates
    Case("exact duplicates", "ExactDuplicates", "chats", copied, 5),
    Case("near duplicates", "NearDuplicates", "texts", nearly_copied, 10),
    Case(
        "held-out records in training",
        "SplitOverlap",
        "chats",
        count=5,
        held_out=lambda r: [*r[:5], *clean("chats", 40, 1)],
    ),
    Case(
        "held-out prompts in training",
        "SplitOverlap",
        "pairs",
        count=4,
        held_out=lambda r: [
            *({**new, "prompt": old["prompt"]} for new, old in zip(clean("pairs", 4, 7), r[:4], strict=True)),
            *clean("pairs", 40, 1),
        ],
    ),
    # Networks
    Case(
        "more ids than rows",
        "VocabularyTooSmall",
        "chats",
        severity="error",
        networks=(Network("policy", "model", VOCABULARY - 3, 256, 10_000),),
    ),
    Case(
        "a context beyond the network's",
        "ContextBeyondNetwork",
        "chats",
        severity="error",
        networks=(Network("policy", "model", VOCABULARY, 128, 10_000),),
    ),
    Case(
        "another reference",
        "ReferenceDiffers",
        "pairs",
        severity="error",
        networks=(OWN, Network("reference", "other", VOCABULARY, 256, 10_000)),
    ),
    Case(
        "a reference of another size",
        "ReferenceDiffers",
        "pairs",
        severity="error",
        networks=(OWN, Network("reference", "other", VOCABULARY, 256, 20_000)),
    ),
    Case(
        "a language model as the reward",
        "RewardFits",
        "prompts",
        severity="error",
        networks=(OWN, Network("reward", "sft", VOCABULARY, 256, 10_000)),
    ),
    Case(
        "a reward model with a short context",
        "RewardFits",
        "prompts",
        severity="error",
        networks=(OWN, Network("reward", "rm", VOCABULARY, 64, 10_000, scores=True)),
    ),
    # Settings
    Case(
        "no room for responses",
        "NoRoomForResponses",
        "prompts",
        count=100,
        severity="error",
        run={"max_new_tokens": {"rollout.max_new_tokens": 250}},
    ),
    Case(
        "short samples",
        "ResponseLimit",
        "chats",
        run={"max_new_tokens": {"policy_evaluation.max_new_tokens": 10}},
    ),
    Case(
        "an interval beyond the epoch", "ValidationInterval", "chats", severity="error", run={"val_check_interval": 50}
    ),
    Case(
        "an interval beyond the run",
        "ValidationInterval",
        "chats",
        run={"val_check_interval": 50, "check_val_every_n_epoch": None},
    ),
    Case("validation after the last epoch", "ValidationInterval", "prompts", run={"check_val_every_n_epoch": 9}),
    Case("a warm-up as long as the run", "Warmup", "chats", run={"warmup_steps": 500}),
    Case(
        "a batch larger than the data",
        "BatchSize",
        "chats",
        settings={"batch_size": 256},
        run={"max_epochs": 12},
    ),
    Case("more prompts than there are", "RolloutPrompts", "prompts", run={"rollout_prompts": 200}),
    Case("a learning rate of full weights for adapters", "LearningRate", "chats", run={"lr": 1e-6, "adapters": True}),
    Case("a learning rate 100 times too high", "LearningRate", "chats", run={"lr": 1e-2}),
    Case("a handful of steps", "RunLength", "chats", run={"max_steps": 3}),
    Case("no step at all", "RunLength", "chats", severity="error", run={"max_steps": 0}),
    Case("a hundred epochs", "RunLength", "chats", run={"max_epochs": 100}),
    Case(
        "more memory than there is", "Memory", "chats", run={"memory": {"parameters": 2 << 40}, "free_memory": 1 << 30}
    ),
    Case("no validation", "SmallValidation", "chats", severity="note", run={"has_validation": False}),
]


def _lines(records: list) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_there_are_enough_of_them():
    assert len({case.name for case in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_planted_mistake_is_found(case: Case, context_of, changed_tokenizer):
    records = clean(case.kind, 100, 0)
    content = case.plant(records)
    context = context_of(
        case.kind,
        content if isinstance(content, bytes) else records,
        case.held_out(records) if case.held_out else None,
        tokenizer=changed_tokenizer(**case.config) if case.config else "",
        run=case.run,
        networks=case.networks,
        **case.settings,
    )
    diagnoses = Doctor().examine(context)
    found = [one for one in diagnoses if one.check == case.check and one.finding.split in (None, "train", "validation")]
    found = [one for one in found if one.severity == case.severity and one.finding.count in (case.count, None)]
    assert found, diagnoses
    assert found[0].finding.count == case.count
    assert found[0].finding.fix
    serious = {one.check for one in diagnoses if one.severity != "note"}
    assert serious <= {case.check, *case.also}


@pytest.mark.parametrize("kind", ["chats", "pairs", "prompts", "texts"])
def test_clean_data_is_silent(kind: str, context_of):
    diagnoses = Doctor().examine(context_of(kind, clean(kind, 100, 0)))
    assert [one for one in diagnoses if one.severity != "note"] == []


def test_another_tokenizer_of_the_same_size_is_found(context_of, tokenizer_dir, tmp_path):
    """Two ids have changed places."""
    spec = Tokenizer.load(tokenizer_dir).spec
    vocab = {**spec.vocab, b"a": spec.vocab[b"b"], b"b": spec.vocab[b"a"]}
    network = replace(OWN, tokenizer=Tokenizer(replace(spec, vocab=vocab)))
    context = context_of("chats", clean("chats", 100, 0), networks=(network,))
    (found,) = [one for one in Doctor().examine(context) if one.severity == "error"]
    assert (found.check, found.finding.count) == ("OtherTokenizer", 2)


def test_stages_that_share_held_out_prompts(context_of):
    """The earlier stage trained on 5 of the 40 prompts that this one holds out: a warning; the other way, a note."""
    held_out = clean("prompts", 40, 1)
    before = context_of("prompts", [*held_out[:5], *clean("prompts", 95, 2)], clean("prompts", 40, 3))
    here = context_of("prompts", clean("prompts", 100, 0), held_out)
    for context, severity in (
        (replace(here, others={"sft": before}), "warning"),
        (replace(before, others={"sft": here}), "note"),
    ):
        (found,) = [one for one in Doctor().examine(context) if one.check == "StageOverlap"]
        assert (found.severity, found.finding.count, found.finding.total) == (severity, 5, 40)


def context_of_feedback(records: list, tokenizer_dir: str, tmp_path: Path) -> Context:
    (tmp_path / "feedback.jsonl").write_bytes(_lines(records))
    data = FeedbackData(tokenizer_dir, str(tmp_path / "feedback.jsonl"))
    return Context("KTO", kind_of(data), read_splits(data, limit=0), data.tokenizer, Run(max_epochs=2))


def test_contradicting_labels(tokenizer_dir, tmp_path):
    records = [one | {"label": number % 2} for number, one in enumerate(clean("chats", 100, 0))]
    records += [one | {"label": 1 - one["label"]} for one in records[:3]]
    context = context_of_feedback(records, tokenizer_dir, tmp_path)
    found = {one.check: one.finding.count for one in Doctor().examine(context) if one.severity == "warning"}
    assert found == {"ContradictingLabels": 6, "ExactDuplicates": 3}


def test_pairs_as_feedback(tokenizer_dir, tmp_path):
    """Both fields of the responses are read; two responses of one record that resemble each other are no duplicates."""
    pairs = clean("pairs", 50, 0)
    records = [one | {"rejected": one["chosen"] + " No.", "score": 1} for one in pairs]
    found = {one.check: one for one in Doctor().examine(context_of_feedback(records, tokenizer_dir, tmp_path))}
    assert "NearDuplicates" not in found
    assert (found["UnreadColumns"].finding.count, found["UnreadColumns"].finding.total) == (100, 100)
    assert names(found["UnreadColumns"].finding.message, "score")
    assert not names(found["UnreadColumns"].finding.message, "chosen")


def test_columns_that_a_reward_reads(tokenizer_dir, tmp_path):
    """A record without one is dropped, as in training; the others' are not unread."""

    class Graded:
        def reward_columns(self, split: str) -> tuple[str, ...]:
            return ("answer",) if split == "train" else ()

    records = [one | {"answer": "4", "level": 1} for one in clean("prompts", 40, 0)]
    records[7]["answer"] = None
    (tmp_path / "prompts.jsonl").write_bytes(_lines(records))
    data = PromptData(tokenizer_dir, str(tmp_path / "prompts.jsonl"))
    data.ask_for_columns(Graded())
    train = read_splits(data, limit=0)["train"]
    assert [(one.location, names(one.reason, "answer")) for one in train.dropped] == [("line 8", True)]
    assert {sample.unread for sample in train.samples} == {("level",)}


@pytest.mark.parametrize("limit", [0, 20])
def test_an_epoch_of_a_mixture(limit: int, tokenizer_dir, tmp_path):
    """Of 60 and 40 chats a tenth each is held out. The other 54 of the first are a quarter of 216 rows: 27 steps."""
    for name, count in (("a", 60), ("b", 40)):
        (tmp_path / f"{name}.jsonl").write_bytes(_lines(clean("chats", count, count)))
    sources = [WeightedSource(str(tmp_path / f"{name}.jsonl"), weight) for name, weight in (("a", 1.0), ("b", 3.0))]
    data = ChatData(tokenizer_dir, sources, val_fraction=0.1)
    splits = read_splits(data, limit=limit)
    context = Context("SFT", "chats", splits, data.tokenizer)
    assert context.steps == 27
    held_out = Counter(Path(sample.source).stem for sample in splits["validation"].samples)
    assert held_out == ({"a": 1, "b": 1} if limit else {"a": 6, "b": 4})


def test_a_character_that_nobody_sees_is_shown_by_its_code(context_of):
    records = clean("chats", 100, 0)
    records[3]["completion"] += "\u2028and more"
    (found,) = [one for one in Doctor().examine(context_of("chats", records)) if one.check == "ControlCharacters"]
    assert "<U+2028>and more" in found.finding.examples[0].text


def test_unbalanced_labels(tokenizer_dir, tmp_path):
    """2 of 100 responses are labelled undesirable."""
    records = [one | {"label": number > 1} for number, one in enumerate(clean("chats", 100, 0))]
    context = context_of_feedback(records, tokenizer_dir, tmp_path)
    (found,) = [one for one in Doctor().examine(context) if one.severity == "warning"]
    assert (found.check, found.finding.count) == ("LabelBalance", 98)


@pytest.mark.parametrize(("packing", "rows"), [("wrap", 3), ("best_fit", 2)])
def test_rows_of_packed_documents(packing: str, rows: int, context_of):
    """Two documents of 30 tokens, bos and eos among them, make 60 tokens: with a context of 29, rows of 30 that share
    a token in a stream (30, 29 more, 1 more), and one row each as documents.
    """
    documents = [{"text": "x" * 28}, {"text": "y" * 28}]
    context = context_of("texts", documents, documents, packing=packing, context=29)
    assert context.rows_per_epoch == rows


def test_of_a_long_document_the_beginning_counts_for_all(tokenizer_dir, tmp_path, monkeypatch):
    """Of 4,000 characters 1,000 are tokenized: 1,002 tokens, four times as many in all, 4,008 / 29 rows."""
    monkeypatch.setattr("align.curate.reading._CHARACTERS", 1000)
    (tmp_path / "book.txt").write_text("x" * 4000)
    data = TextData(tokenizer_dir, str(tmp_path / "book.txt"), context=29)
    split = read_splits(data, limit=10)["train"]
    context = Context("Pretrain", "texts", {"train": split}, data.tokenizer)
    assert (split.tokens, split.scale) == (1002, 4.0)
    assert context.rows_per_epoch == pytest.approx(4 * 1002 / 29, abs=4)


@pytest.mark.parametrize(("limit", "read"), [(0, 100), (30, 30), (200, 100)])
def test_a_limit_leaves_records_out_and_counts_them(limit: int, read: int, tokenizer_dir, tmp_path):
    """Of two files as many records each; 100 records in batches of 8 are 13 steps, however many were read."""
    for name, part in (("a", slice(60)), ("b", slice(60, 100))):
        (tmp_path / f"{name}.jsonl").write_bytes(_lines(clean("chats", 100, 0)[part]))
    data = ChatData(tokenizer_dir, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    split = read_splits(data, limit=limit)["train"]
    assert len(split.samples) == read
    sources = Counter(sample.source[-7] for sample in split.samples)
    assert limit != 30 or sources == {"a": 15, "b": 15}
    assert Context("SFT", "chats", {"train": split}, data.tokenizer).steps == 13


def test_a_check_of_the_users_own_and_one_left_out(context_of):
    from align.curate import Check, Finding

    @dataclass(frozen=True)
    class Short(Check):
        severity = "error"

        def find(self, context):
            yield Finding("too short", count=len(context.train.samples))

    context = context_of("chats", clean("chats", 100, 0), run={"lr": 1.0})
    found = Doctor(checks=[Short()], without=["LearningRate"]).examine(context)
    assert [one.check for one in found if one.severity != "note"] == ["Short"]
    with pytest.raises(ValueError, match="Lenghts"):
        Doctor(without=["Lenghts"])
