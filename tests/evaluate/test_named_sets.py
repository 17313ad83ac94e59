"""The named sets (MMLU, HellaSwag, ARC ...) on records in their published form, from local files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from align.cli import main  # noqa: E402
from align.cli.harness import PROGRAM_SETS  # noqa: E402
from align.evaluate.harness_tasks import HarnessSettings, _whole_index, run_harness  # noqa: E402
from align.evaluate.local_data import local_manager, parse_data  # noqa: E402
from align.evaluate.task import Subject  # noqa: E402
from align.io.directory import save_network  # noqa: E402
from align.model.config import GPTConfig  # noqa: E402
from align.model.gpt import GPT  # noqa: E402
from align.tokenizer import train_tokenizer  # noqa: E402

NUMBERS = ("one", "two", "three", "four")
GOLD = (0, 2, 3, 1)
"""Right choices of the four records of every set; those of WinoGrande are modulo 2"""
NO_COMMAS = {"key": 1, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
RECORDS: dict[str, list[dict]] = {
    "mmlu_anatomy": [
        {"question": f"Bones {i}?", "subject": "anatomy", "choices": [*NUMBERS], "answer": gold}
        for i, gold in enumerate(GOLD)
    ],
    "hellaswag": [
        {
            "ind": i,
            "activity_label": "Counting",
            "ctx_a": f"A girl counts to {i}.",
            "ctx_b": "she",
            "ctx": f"A girl counts to {i}. she",
            "endings": [f"[step] says {word}." for word in NUMBERS],
            "source_id": "activitynet~v_1",
            "split": "val",
            "split_type": "indomain",
            "label": str(gold),
        }
        for i, gold in enumerate(GOLD)
    ],
    "arc_easy": [
        {
            "id": f"a{i}",
            "question": f"Which {i}?",
            "choices": {"text": [*NUMBERS], "label": [*"ABCD"]},
            "answerKey": key,
        }
        for i, key in enumerate("ACDB")
    ],
    "winogrande": [
        {"sentence": f"The cat {i} saw _ and ran.", "option1": "one", "option2": "three", "answer": str(1 + gold % 2)}
        for i, gold in enumerate(GOLD)
    ],
    "gsm8k": [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(4)],
    "truthfulqa_mc1": [
        {
            "question": f"Is {i} odd?",
            "mc1_targets": {"choices": [*NUMBERS], "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": [*NUMBERS], "labels": [1, 0, 1, 0]},
        }
        for i in range(4)
    ],
    "ifeval": [{"prompt": f"Say {i} without commas."} | NO_COMMAS for i in range(4)],
}
RECORDS["arc_challenge"], RECORDS["truthfulqa_mc2"] = RECORDS["arc_easy"], RECORDS["truthfulqa_mc1"]
FEWSHOT = dict.fromkeys(RECORDS, 0) | {"gsm8k": 5}
CHOICE = ("mmlu_anatomy", "hellaswag", "arc_easy", "arc_challenge", "truthfulqa_mc1")
NORMALISED = ("hellaswag", "arc_easy", "arc_challenge")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["one two three four"], vocab_size=256 + 12)
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=16, ff_width=16, context=2048))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    directory = tmp_path_factory.mktemp("named") / "model"
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(directory)
    return Subject(directory, "cpu", 0, 4, directory.parent / "cache")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``TASK=FILE`` of every set, and of the examples of GSM8K."""
    folder = tmp_path_factory.mktemp("records")
    for name, records in RECORDS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    examples = [{"question": f"What is {i} + 2?", "answer": f"#### {i + 2}"} for i in range(6)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in examples))
    return [*(f"{name}={folder / name}.jsonl" for name in RECORDS), f"gsm8k:train={folder}/examples.jsonl"]


@pytest.fixture(scope="module")
def found(subject: Subject, words: list[str]) -> dict:
    """Results and what the harness returns, of all sets but IFEval."""
    names = [name for name in RECORDS if name != "ifeval"]
    data = parse_data([word for word in words if "ifeval" not in word])
    runs = run_harness(subject, names, HarnessSettings(data=data, chat="no"), limit=None)
    return {results[0].task: (results[0], raw) for results, raw in runs}


def likelihoods(items) -> np.ndarray:
    """``[P, choices]``"""
    return np.array([[row[0] for row in item["filtered_resps"]] for item in items])


@pytest.mark.parametrize("name", [name for name in FEWSHOT if name != "ifeval"])
def test_every_set_reads_its_records_with_its_number_of_examples(found, name: str):
    result, raw = found[name]
    assert raw["n-shot"][name] == FEWSHOT[name]
    assert raw["n-samples"][name] == {"original": 4, "effective": 4}
    assert len({item["doc_id"] for item in result.items}) == 4


@pytest.mark.parametrize("name", CHOICE)
def test_the_most_likely_choice_is_the_answer(found, name: str):
    """acc compares log-likelihoods, acc_norm those per character of the choice; TruthfulQA's right one is the first."""
    result, _ = found[name]
    values = {measure.name: measure.values for measure in result.measures}
    gold = [0] * 4 if name == "truthfulqa_mc1" else GOLD
    rows = likelihoods(result.items)
    assert values["acc,none"].tolist() == [float(row.argmax() == right) for row, right in zip(rows, gold, strict=True)]
    assert ("acc_norm,none" in values) == (name in NORMALISED)
    if name in NORMALISED:
        lengths = np.array([len(f" says {word}." if name == "hellaswag" else word) for word in NUMBERS])
        best = (rows / lengths).argmax(1)
        assert values["acc_norm,none"].tolist() == [float(a == b) for a, b in zip(best, gold, strict=True)]


def test_winogrande_compares_the_end_of_the_sentence_after_both_names(found):
    result, _ = found["winogrande"]
    best = likelihoods(result.items).argmax(1)
    assert result.measures[0].values.tolist() == [float(a == b % 2) for a, b in zip(best, GOLD, strict=True)]
    assert {argument for item in result.items for argument in (item["arguments"][1][0],)} == {
        f"The cat {i} saw three" for i in range(4)
    }


def test_truthfulqa_mc2_is_the_probability_of_the_true_choices(found):
    result, _ = found["truthfulqa_mc2"]
    weights = np.exp(likelihoods(result.items))
    expected = weights[:, [0, 2]].sum(1) / weights.sum(1)
    assert result.measures[0].name == "acc,none"
    assert result.measures[0].values == pytest.approx(expected)


def test_gsm8k_reads_the_marked_and_the_last_number(found):
    result, _ = found["gsm8k"]
    names = {measure.name for measure in result.measures}
    assert names == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert result.items[0]["arguments"][0][0].count("#### ") == 5


def test_ifeval_checks_instructions(subject: Subject, words: list[str]):
    """Its packages, without NLTK's data; a response without a comma follows the instruction if it isn't empty."""
    pytest.importorskip("langdetect", reason="the extra eval is not installed")
    data = parse_data([word for word in words if "ifeval" in word])
    ((results, raw),) = run_harness(subject, ["ifeval"], HarnessSettings(data=data, chat="no"), limit=None)
    assert raw["n-shot"]["ifeval"] == 0
    values = {measure.name: measure.value for measure in results[0].measures}
    texts = [item["resps"][0][0] for item in results[0].items]
    strict = np.mean([bool(text.strip()) and "," not in text for text in texts])
    assert values["prompt_level_strict_acc,none"] == values["inst_level_strict_acc,none"] == strict
    assert {"prompt_level_loose_acc,none", "inst_level_loose_acc,none"} <= values.keys()


def test_a_missing_package_is_named(subject: Subject, words: list[str], monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "immutabledict", None)
    data = parse_data([word for word in words if "ifeval" in word])
    with pytest.raises(ValueError, match=r"task ifeval needs the package (immutabledict|langdetect).*eval\]") as error:
        next(run_harness(subject, ["ifeval"], HarnessSettings(data=data), limit=None))
    assert "\n" not in str(error.value)


def test_groups_read_a_folder_per_subject(tmp_path: Path):
    """All 57 subjects of MMLU, without loading them; a copy of the Hub's repository says itself what its files are."""
    index = _whole_index(None)
    folder, written = tmp_path / "mmlu", tmp_path / "written"
    configs = [index.task_index[name].cfg or {} for name in index.all_tasks if name.startswith("mmlu_")]
    names = {config["dataset_name"] for config in configs if config.get("dataset_path") == "cais/mmlu"}
    assert len(names) == 57
    for name in names:
        (folder / name).mkdir(parents=True)
        for split in ("test", "dev"):
            (folder / name / f"{split}.jsonl").touch()
    written.mkdir()
    local = local_manager(index, {"mmlu": {"": str(folder)}}, written, fewshot=5)
    assert {"mmlu", "mmlu_stem", "mmlu_humanities", "mmlu_other", "mmlu_social_sciences"} <= set(local.all_groups)
    leaves = [local.task_index[name].cfg for name in local.all_subtasks]
    assert len(leaves) == 57
    assert {config["dataset_path"] for config in leaves} == {"json"}
    anatomy = local.task_index["mmlu_anatomy"].cfg
    expected = {split: str(folder / "anatomy" / f"{split}.jsonl") for split in ("dev", "test")}
    assert anatomy["dataset_kwargs"]["data_files"] == expected
    assert (anatomy["test_split"], anatomy["fewshot_split"]) == ("test", "dev")
    (folder / "README.md").touch()
    again = tmp_path / "again"
    again.mkdir()
    local = local_manager(index, {"mmlu": {"": str(folder)}}, again, fewshot=5)
    config = local.task_index["mmlu_anatomy"].cfg
    assert (config["dataset_path"], config["dataset_name"]) == (str(folder), "anatomy")


def test_what_is_no_local_data(subject: Subject, words: list[str], tmp_path: Path):
    (tmp_path / "x.txt").touch()
    for word, named in (("gsm8k", "'gsm8k'"), ("a=absent.jsonl", "absent.jsonl"), (f"a={tmp_path}/x.txt", r"x\.txt")):
        with pytest.raises(ValueError, match=named):
            parse_data([word])
    data = parse_data([word for word in words if word.startswith("gsm8k=")])
    with pytest.raises(ValueError, match="gsm8k:train=FILE"):
        next(run_harness(subject, ["gsm8k"], HarnessSettings(data=data), limit=None))
    with pytest.raises(ValueError, match="gsm8k.*not among"):
        next(run_harness(subject, ["hellaswag"], HarnessSettings(data=data), limit=None))


def test_programs_by_name_need_permission_and_run_shut_in(subject: Subject, tmp_path: Path, capsys, monkeypatch):
    assert set(PROGRAM_SETS) == {"humaneval", "mbpp"}
    for verb in (["eval", "--tasks"], ["compare", "--out", "x", "--eval"]):
        assert main([verb[0], str(subject.directory), *verb[1:], "humaneval"]) == 2
        assert "--allow_code_execution" in capsys.readouterr().err
    records = {
        "humaneval": {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"},
        "mbpp": {"task_id": 1, "text": "Do it.", "code": "", "test_list": ["assert True"], "test_setup_code": ""},
    }
    for name, record in records.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    data = [f"{name}={tmp_path / name}.jsonl" for name in records]
    args = ["eval", f"m={subject.directory}", "--allow_code_execution", "--max_new_tokens", "3", "--data", *data]
    assert main([*args, "--tasks", "humaneval", "mbpp", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/m/results.json").read_text())
    assert set(report["results"]) == {"humaneval", "mbpp"}
    assert all(math.isfinite(numbers["pass@1,none"]) for numbers in report["results"].values())
