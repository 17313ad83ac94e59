"""`align compare` on toy models: what it writes, that nothing is lost, and mistakes in one line."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from naming import error_line, names

from align.cli import main
from align.compare.candidates import Run
from align.compare.respond import logprobs
from align.io.directory import load_network
from align.sandbox import gold_reward
from align.tokenizer import Tokenizer

Report = dict


def compare(run: Path, out: Path, *models: str, extra: Sequence[str] = ()) -> int:
    """Two responses of at most 8 tokens to each of 6 prompts."""
    return main(
        ["compare", *models, "--out", str(out), "--n", "2", "--max_new_tokens", "8", "--batch_size", "6", *extra]
    )


def read(out: Path) -> Report:
    return json.loads((out / "report.json").read_text())


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    models = [f"{name}={run / name}" for name in ("sft", "dpo", "ppo")]
    assert compare(run, folder, *models) == 0
    return folder


def test_the_report_has_what_the_schema_says(out: Path, run: Path) -> None:
    report = read(out)
    assert report["schema_version"] == 3
    assert report["baseline"] == "sft"
    assert [judge["name"] for judge in report["judges"]] == ["gold", "reward"]
    for name in ("sft", "dpo", "ppo"):
        model = report["models"][name]
        assert set(model["rewards"]) == {"gold", "reward"}
        assert set(model["metrics"]) == {metric["name"] for metric in report["metrics"]}
        for value in (model["kl"], model["metrics"]["Length"], model["metrics"]["EOSRate"], *model["rewards"].values()):
            low, high = value["ci95"]
            assert low <= value["mean"] <= high
        assert 0 <= model["metrics"]["EOSRate"]["mean"] <= 1
        assert model["metrics"]["Distinct2"]["ci95"] is None
        assert model["cost"]["wall_seconds"] > 0
        assert model["runs"] == [str(run / name / "model")]
    assert [(pair["a"], pair["b"]) for pair in report["pairs"]] == [("dpo", "sft"), ("ppo", "sft"), ("ppo", "dpo")] * 2
    for measure in ("verdict", "verdict_length_controlled", "verdict_difference"):
        assert {pair[measure] for pair in report["pairs"]} == {"no difference shown"}, "six prompts show nothing"
    assert {pair["n"] for pair in report["pairs"]} == {12}
    assert report["models"]["dpo"]["cost"]["labels"] > 0
    assert report["models"]["ppo"]["cost"]["samples"] == 4
    assert report["models"]["ppo"]["cost"]["reward_model"]["labels"] == 24
    assert report["models"]["dpo"]["cost"]["reward_model"] is None
    assert any(setting["setting"] == "model.class_path" for setting in report["settings"])
    assert names((out / "report.md").read_text(), "ppo", "dpo", "no difference shown")


def test_numbers_are_those_of_the_samples(out: Path) -> None:
    report, samples = read(out), rows(out)
    assert len(samples) == 6
    for name in ("sft", "dpo"):
        responses = [response for row in samples for response in row["responses"][name]]
        prompts = [row["prompt"] for row in samples for _ in range(2)]
        golds = [
            gold_reward(prompt, response["text"]).total for prompt, response in zip(prompts, responses, strict=True)
        ]
        assert report["models"][name]["rewards"]["gold"]["mean"] == pytest.approx(sum(golds) / 12, abs=1e-5)
        assert report["models"][name]["metrics"]["Length"]["mean"] == pytest.approx(
            sum(a["tokens"] for a in responses) / 12
        )
        assert report["models"][name]["kl"]["mean"] == pytest.approx(
            sum(a["log_ratio"] for a in responses) / 12, abs=1e-4
        )
    assert all(response["log_ratio"] == 0 for row in samples for response in row["responses"]["sft"])


def test_best_of_n_and_the_cost_on_ordinary_text(run: Path, tmp_path: Path) -> None:
    """The best of 3 has a KL of at most log 3 - 2/3 = 0.43195, and weights of no model of its own."""
    (tmp_path / "texts.jsonl").write_text('{"text": "The fox walked home."}\n{"text": "It was late, and dark."}\n')
    (tmp_path / "more.txt").write_text("A lantern.")
    extra = ["--best_of", "best=sft:3:gold", "--keep_unfinished", "--frontier_n", "1", "--texts"]
    extra += [str(tmp_path / "texts.jsonl"), str(tmp_path / "more.txt")]
    assert compare(run, tmp_path / "out", f"sft={run / 'sft'}", f"dpo={run / 'dpo'}", extra=extra) == 0
    report = read(tmp_path / "out")
    sft, dpo, best = (report["models"][name] for name in ("sft", "dpo", "best"))
    assert best["kl"] == {"mean": 0.43195, "ci95": [0.43195, 0.43195], "by": "bound"}
    assert best["best_of"] == {"model": "sft", "n": 3, "judge": "gold", "keep_unfinished": True}
    assert (best["cost"], best["texts"], sft["best_of"]) == (None, None, None)
    assert best["rewards"]["gold"]["mean"] >= sft["rewards"]["gold"]["mean"]
    assert best["sampled_tokens"]["mean"] >= 2 * best["metrics"]["Length"]["mean"]
    assert sft["sampled_tokens"] == sft["metrics"]["Length"]
    assert {"best of 3"} == {point["checkpoint"] for point in report["frontier"] if point["model"] == "best"}
    assert report["texts"] == {"documents": 3, "bytes": 20 + 22 + 10}
    assert (sft["texts"]["change"], sft["texts"]["verdict"]) == (None, None)
    assert dpo["texts"]["verdict"] == "no difference shown", "three documents show nothing"
    difference = dpo["texts"]["bits_per_byte"]["mean"] - sft["texts"]["bits_per_byte"]["mean"]
    assert dpo["texts"]["change"]["mean"] == pytest.approx(difference, abs=2e-5)
    written = (tmp_path / "out/report.md").read_text()
    assert all(words in written for words in ("best of 3 of sft by gold", "upper bound", "What alignment cost"))


def test_every_checkpoint_is_on_the_frontier(out: Path, run: Path) -> None:
    points = [point for point in read(out)["frontier"] if point["judge"] == "gold"]
    assert [p["checkpoint"] for p in points if p["model"] == "sft"] == ["model"]
    steps = [point.step for point in Run.of(run / "dpo/model").points()]
    assert [p["step"] for p in points if p["model"] == "dpo"] == steps
    assert steps == [4, 6]


def test_two_copies_show_no_difference(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "dpo/model", tmp_path / "copy")
    assert compare(run, tmp_path / "out", f"one={run / 'dpo'}", f"other={tmp_path / 'copy'}") == 0
    report = read(tmp_path / "out")
    for pair in report["pairs"]:
        assert (pair["win_rate"], pair["ci95"], pair["better"]) == (0.5, [0.5, 0.5], None)
        assert pair["length_controlled"]["mean"] == pytest.approx(0.5)
    assert report["models"]["other"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)


def test_several_seeds_and_a_judge_of_each(run: Path, tmp_path: Path) -> None:
    twice = f"{run / 'dpo'},{run / 'ppo'}"
    extra = ["--judge", f"proxy={run / 'reward/model'},{run / 'reward/model'}", "gold=sandbox", "--frontier_n", "0"]
    assert compare(run, tmp_path, f"sft={run / 'sft'}", f"aligned={twice}", extra=extra) == 0
    report = read(tmp_path)
    assert report["seeds"] == 2
    assert report["frontier"] == []
    assert report["pairs"][0]["n"] == 24
    assert report["models"]["aligned"]["proxies"]["gold"]["against"] == "proxy"


def test_kl_by_text_is_that_by_tokens_where_both_tokenise_alike(run: Path, tmp_path: Path) -> None:
    """A tokenizer with a further special token writes the same ids of these texts but counts as another one."""
    shutil.copytree(run / "dpo/model", tmp_path / "dpo")
    config = json.loads((tmp_path / "dpo/tokenizer.json").read_text())
    extra = config["added_tokens"][-1] | {"content": "<|spare|>", "id": config["added_tokens"][-1]["id"] + 1}
    config["added_tokens"].append(extra)
    (tmp_path / "dpo/tokenizer.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path / "dpo").fingerprint != Tokenizer.load(run / "dpo/model").fingerprint
    compare(run, tmp_path / "same", f"sft={run / 'sft'}", f"dpo={run / 'dpo'}", extra=["--frontier_n", "0"])
    compare(run, tmp_path / "text", f"sft={run / 'sft'}", f"dpo={tmp_path / 'dpo'}", extra=["--frontier_n", "0"])
    same, text = (read(tmp_path / name)["models"]["dpo"]["kl"] for name in ("same", "text"))
    assert (same["by"], text["by"]) == ("tokens", "text")
    assert "(by text)" in (tmp_path / "text/report.md").read_text()


def test_logprobs_are_those_of_the_whole_logits(run: Path) -> None:
    network = load_network(run / "sft/model").double().eval()
    prompts, responses = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]
    ours = logprobs(network, prompts, responses, temperature=0.7)
    for value, prompt, response in zip(ours, prompts, responses, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        logits = network(ids[:, :-1])[0].detach() / 0.7
        places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        expected = sum(logits[i].log_softmax(-1)[t] for i, t in zip(places, response, strict=True))
        assert value.item() == pytest.approx(float(expected), abs=1e-9)


def test_a_judge_that_fails_midway_loses_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge fails at the second batch; the second run scores only what is missing, and samples nothing."""
    (tmp_path / "moody_judge.py").write_text(
        "from pathlib import Path\n"
        "seen = Path(__file__).with_name('seen')\n"
        "broken = Path(__file__).with_name('broken')\n"
        "def judge(prompts, responses):\n"
        "    if broken.exists() and seen.exists() and seen.read_text().count('x') >= 4:\n"
        "        raise RuntimeError('out of credit')\n"
        "    with seen.open('a') as file: file.write('x' * len(responses))\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("align.compare.judges._SCORED", 4)
    (tmp_path / "broken").touch()
    # Scores are cached by text, and the toy's few steps of DPO may leave every response as it was.
    models = [f"sft={run / 'sft'}", f"base={run / 'pretrain'}"]
    extra = ["--judge", "moody=moody_judge:judge", "--frontier_n", "0"]
    assert compare(run, tmp_path / "out", *models, extra=extra) == 1
    error_line(capsys, "moody_judge:judge", "out of credit", alone=True)
    assert not (tmp_path / "out/report.json").exists()
    (tmp_path / "broken").unlink()
    assert (tmp_path / "seen").read_text() == "x" * 4
    assert compare(run, tmp_path / "out", *models, extra=extra) == 0
    assert (tmp_path / "seen").read_text() == "x" * 24, "each of 24 responses was scored once"


def test_a_killed_comparison_goes_on_with_the_same_responses(run: Path, tmp_path: Path, out: Path) -> None:
    models = [f"{name}={run / name}" for name in ("sft", "dpo", "ppo")]
    shutil.copytree(out / "cache", tmp_path / "cache")
    for log in (tmp_path / "cache").glob("*.jsonl"):
        content = log.read_bytes()
        log.write_bytes(content[: 2 * len(content) // 3])  # killed while it wrote
    assert compare(run, tmp_path, *models) == 0
    assert rows(tmp_path) == rows(out)


@pytest.mark.parametrize(
    ("models", "extra", "code", "named"),
    [
        (["sft={run}/sft"], [], 2, []),
        (["sft={run}/sft", "={run}/dpo"], [], 2, ["={run}/dpo", "NAME=PATH"]),
        (["a={run}/sft", "a={run}/dpo"], [], 2, ["{run}/sft", "{run}/dpo", "NAME=PATH"]),
        (["{run}/sft", "dpo="], [], 2, ["dpo=", "NAME=PATH"]),
        (["sft={run}/sft", "dpo={run}"], [], 1, ["{run}/config.json", "{run}/model/config.json"]),
        (["sft={run}/sft", "dpo={run}/data"], [], 1, ["{run}/data/config.json", "{run}/data/model/config.json"]),
        (["sft={run}/sft", "dpo={run}/reward"], [], 1, ["{run}/reward/model", "LlamaForSequenceClassification"]),
        (["a={run}/sft,{run}/sft", "b={run}/dpo,{run}/dpo,{run}/dpo"], [], 2, ["a", 1, 3]),
        (["a={run}/sft", "b={run}/dpo"], ["--best_of", "c=a:4"], 2, ["c=a:4", "NAME=MODEL:N:JUDGE"]),
        (["a={run}/sft", "b={run}/dpo"], ["--best_of", "c=d:4:gold"], 2, ["d", "a, b"]),
        (["a={run}/sft", "b={run}/dpo"], ["--best_of", "c=a:1:gold"], 2, ["c=a:1:gold", 2]),
        (["a={run}/sft", "b={run}/dpo"], ["--best_of", "c=a:4:nobody"], 2, ["nobody", "gold, reward"]),
        (["a={run}/sft", "b={run}/dpo"], ["--best_of", "b=a:4:gold"], 2, ["b", "NAME=PATH"]),
        (["a={run}/sft", "b={run}/dpo"], ["--texts", "{run}/nowhere.jsonl"], 1, ["{run}/nowhere.jsonl"]),
        (["a={run}/sft", "b={run}/dpo"], ["--judge", "nobody"], 2, ["nobody"]),
        (["a={run}/sft", "b={run}/dpo"], ["--judge", "http://127.0.0.1:9/v1"], 1, ["http://HOST/v1#MODEL"]),
        (["a={run}/sft", "b={run}/dpo"], ["--temperature", "0"], 2, ["temperature", 0]),
        (["a={run}/sft", "b={run}/dpo"], ["--n", "0"], 2, ["n", 0]),
        (["a={run}/sft", "b={run}/dpo"], ["--prompts", "{empty}"], 2, ["{empty}"]),
        (["a={run}/sft", "b={run}/dpo"], ["--prompts", "{run}/nowhere.jsonl"], 1, ["{run}/nowhere.jsonl"]),
    ],
)
def test_mistakes_in_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    models: list[str],
    extra: list[str],
    code: int,
    named: list[str | int],
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    words = [word.format(run=run, empty=empty) for word in [*models, *extra]]
    assert compare(run, tmp_path / "out", *words[: len(models)], extra=words[len(models) :]) == code
    error_line(capsys, *(str(token).format(run=run, empty=empty) for token in named), alone=True)


def test_a_checkpoint_cut_in_half_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "dpo", tmp_path / "dpo")
    (whole,) = (tmp_path / "dpo/checkpoints").glob("*step=4.ckpt")
    whole.write_bytes(whole.read_bytes()[:5000])
    assert compare(run, tmp_path / "out", f"sft={run / 'sft'}", f"dpo={tmp_path / 'dpo'}") == 1
    error_line(capsys, whole, 5000, alone=True)
