"""`align preferences` on a toy model: what it writes, that nothing is lost, and mistakes in one line."""

import json
from pathlib import Path

import pytest
from naming import error_line, names

from align.cli import main
from align.data.pair_data import PreferenceData
from align.data.text_data import ChatData
from align.engines import ours
from align.io.manifest import weights_fingerprint
from align.sandbox import gold_reward

Records = list[dict]


def prefer(run: Path, out: Path, *extra: str) -> int:
    """12 answers of at most 12 tokens, 3 prompts a batch; a toy never ends its turn, so cut answers are kept."""
    command = ["preferences", str(run / "sft/model"), "--prompts", str(run / "data/prompts_train.jsonl")]
    command += ["--judge", "sandbox", "--out", str(out), "--max-new-tokens", "12", "--keep-unfinished"]
    return main([*command, "--n", "3", "--batch-size", "6", *extra])


def read(file: Path) -> Records:
    return [json.loads(line) for line in file.read_text().splitlines()]


def meta(file: Path) -> dict:
    return json.loads(file.with_name(f"{file.name}.meta.json").read_text())


def test_pairs_are_ordinary_preference_data_with_provenance(run: Path, tmp_path: Path):
    out = tmp_path / "deep" / "pairs.jsonl"
    assert prefer(run, out, "--label-temperature", "0.5") == 0
    records = read(out)
    prompts = [json.loads(line)["prompt"] for line in (run / "data/prompts_train.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 3
    for number, record in enumerate(records):
        assert set(record) == {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
        assert record["prompt"] == prompts[number // 3]
        for name in ("chosen", "rejected"):
            (turn,) = record[name]
            assert turn["role"] == "assistant"
            asked = record["prompt"][-1]["content"]
            assert record[f"score_{name}"] == gold_reward(asked, turn["content"]).total
    told = meta(out)
    assert told["model"]["weights"] == weights_fingerprint(run / "sft/model")
    assert told["judge"] == {"name": "sandbox", "weights": None, "code": None}
    assert told["labels"]["label_temperature"] == 0.5
    assert told["counts"]["records"] == 12
    assert told["counts"]["responses"] == 12
    assert sorted(path.name for path in out.parent.iterdir()) == ["pairs.jsonl", "pairs.jsonl.meta.json"]


def test_what_is_written_can_be_read(run: Path, tmp_path: Path):
    pairs, chats = tmp_path / "pairs.jsonl", tmp_path / "chats.jsonl"
    assert prefer(run, pairs, "--label-temperature", "1") == 0
    assert prefer(run, chats, "--best-of") == 0
    common = {"tokenizer": str(run / "sft/model"), "context": 128, "cache_dir": str(tmp_path / "cache")}
    data = PreferenceData(train=str(pairs), validation=str(pairs), batch_size=2, **common)
    data.prepare_data()
    data.setup("fit")
    numbers = [number for batch in data.record_loader("validation") for number in batch.numbers.tolist() if number >= 0]
    assert sorted(numbers) == list(range(len(read(pairs))))
    data = ChatData(train=str(chats), validation=str(chats), batch_size=2, **common)
    data.prepare_data()
    data.setup("fit")


def test_the_best_of_n_is_the_highest_of_the_same_answers(run: Path, tmp_path: Path):
    pairs, chats = tmp_path / "pairs.jsonl", tmp_path / "chats.jsonl"
    assert prefer(run, pairs, "--label-temperature", "1") == 0
    assert prefer(run, chats, "--best_of") == 0
    records = read(pairs)
    for number, chat in enumerate(read(chats)):
        assert set(chat) == {"messages", "score"}
        mine = [record for record in records if record["prompt"] == chat["messages"][:-1]]
        scores = {score for record in mine for score in (record["score_chosen"], record["score_rejected"])}
        assert chat["score"] == max(scores), number
    assert meta(chats)["what"] == "best of n"


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(run: Path, tmp_path: Path, capsys):
    files = [tmp_path / name / "pairs.jsonl" for name in "abc"]
    for file, seed in zip(files, "001", strict=True):
        assert prefer(run, file, "--label-temperature", "1", "--seed", seed, "--json") == 0
    summaries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert summaries[0] == summaries[1] == meta(files[0])
    assert files[0].read_bytes() == files[1].read_bytes()
    texts = [{turn["content"] for record in read(file) for turn in record["chosen"]} for file in files]
    assert not texts[0] & texts[2], "neighbouring seeds share no answer"


def test_skip_and_limit_take_a_part_with_the_same_answers(run: Path, tmp_path: Path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    extra = ["--label-temperature", "1", "--batch-size", "3"]
    assert prefer(run, whole, *extra) == 0
    assert prefer(run, part, *extra, "--skip", "1", "--limit", "2") == 0
    assert read(part) == read(whole)[3:9]


def break_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> list[int]:
    """Let sampling raise at a call; the rows of every call."""
    real, calls = ours.sample_responses, []

    def sample(network, tokenizer, ids, *args, **kwargs):
        calls.append(len(ids))
        if len(calls) == call:
            raise error
        return real(network, tokenizer, ids, *args, **kwargs)

    monkeypatch.setattr(ours, "sample_responses", sample)
    return calls


@pytest.mark.parametrize("torn", [b"", b'[[["half a li', b"\xff"])
def test_a_killed_run_goes_on_and_nothing_is_lost(run: Path, tmp_path: Path, monkeypatch, capsys, torn: bytes):
    """4 prompts, 2 a batch: interrupted in the second batch, whose line may be torn; resumed, it samples that alone."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    assert prefer(run, whole, "--label-temperature", "1") == 0
    out.write_text("an earlier output\n")
    with monkeypatch.context() as patch:
        break_at(patch, 2, KeyboardInterrupt())
        assert prefer(run, out, "--label-temperature", "1") == 130
    assert out.read_text() == "an earlier output\n"
    log = tmp_path / ".pairs.jsonl.partial"
    with log.open("ab") as file:
        file.write(torn)
    calls = break_at(monkeypatch, 0, KeyboardInterrupt())
    assert prefer(run, out, "--label-temperature", "1") == 0
    assert calls == [6]
    assert names(capsys.readouterr().err, 2, log)
    assert out.read_bytes() == whole.read_bytes()
    assert meta(out) == meta(whole)
    assert not log.exists()


def test_answers_of_other_settings_are_not_taken_up(run: Path, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "pairs.jsonl"
    with monkeypatch.context() as patch:
        break_at(patch, 2, KeyboardInterrupt())
        assert prefer(run, out) == 130
    calls = break_at(monkeypatch, 0, KeyboardInterrupt())
    capsys.readouterr()
    assert prefer(run, out, "--label-temperature", "1", "--temperature", "0.9") == 0
    assert calls == [6, 6]
    assert names(capsys.readouterr().err, tmp_path / ".pairs.jsonl.partial", "sampling.temperature", "0.9")


def test_prompts_without_room_are_skipped_and_counted(run: Path, tmp_path: Path, capsys, monkeypatch):
    """Strings and messages, one of them longer than the context of 192; the judge is a function of texts."""
    (tmp_path / "judge_by_length.py").write_text("def score(prompts, answers): return map(len, answers)\n")
    monkeypatch.syspath_prepend(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A tale of a goat."}]
    lines = [{"prompt": "Tell a tale."}, {"prompt": "goat " * 500}, {"prompt": chat}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "pairs.jsonl"
    assert (
        prefer(run, out, "--prompts", str(prompts), "--judge", "judge_by_length:score", "--label-temperature", "9") == 0
    )
    assert names(capsys.readouterr().out, "prompts", "skipped", 1)
    assert meta(out)["counts"]["prompts_too_long"] == 1
    records = read(out)
    assert all(record["score_chosen"] == len(record["chosen"][0]["content"]) for record in records)
    asked = [record["prompt"] for record in records]
    assert asked == [[{"role": "user", "content": "Tell a tale."}]] * 3 + [chat] * 3


def test_greedy_answers_are_all_equal(run: Path, tmp_path: Path, capsys):
    """Nothing to compare: exit 1, one line, the old output stays; the best of equal ones is still an answer."""
    out = tmp_path / "pairs.jsonl"
    out.write_text("an earlier output\n")
    assert prefer(run, out, "--temperature", "0") == 1
    error_line(capsys, "prompts_all_equal", 4)
    assert out.read_text() == "an earlier output\n"
    assert prefer(run, out, "--temperature", "0", "--best-of") == 0
    assert len(read(out)) == 4


@pytest.mark.parametrize(
    ("extra", "code", "named"),
    [
        (["--n", "1"], 2, ["n", 1, 2]),
        (["--batch-size", "0"], 2, ["batch_size", 0]),
        (["--skip", "-1"], 2, ["skip", -1]),
        (["--limit", "0"], 2, ["limit", 0]),
        (["--label-temprature", "1"], 2, ["--label_temprature", "label_temperature"]),
        (["--label-temperature", "-1"], 2, ["label_temperature", "-1.0"]),
        (["--pairs-per-prompt", "0"], 2, ["pairs_per_prompt", 0]),
        (["--temperature", "-1"], 2, ["temperature", "-1.0"]),
        (["--judge", "sandbx"], 1, ["sandbx"]),
        (["--judge", "math:fsum"], 1, ["math:fsum"]),
        (["--prompts", "nothing.jsonl"], 1, ["nothing.jsonl"]),
        (["--skip", "99"], 1, ["prompts_train.jsonl", 99]),
    ],
)
def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys, extra: list[str], code: int, named: list):
    assert prefer(run, tmp_path / "pairs.jsonl", *extra) == code
    error_line(capsys, "align preferences", *named)
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("nonsense", ["JSON"]),
        ('{"text": "x"}', ["prompt"]),
        ('{"prompt": 3}', ["prompt", "int"]),
        ('{"prompt": [{"role": "user"}]}', ["prompt", 1, "content"]),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(run: Path, tmp_path: Path, capsys, line: str, named: list[str]):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "Tell a tale."}\n' + line + "\n")
    assert prefer(run, tmp_path / "pairs.jsonl", "--prompts", str(file)) == 1
    error_line(capsys, "bad.jsonl", "line 2", *named)
