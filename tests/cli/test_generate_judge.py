"""``align generate --judge``: a reward-model directory scores samples, and what is no judge is told in one line."""

import json

import pytest

from align.cli import main
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.rewards.functions import load_reward
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64, init_std=0.3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A language model and a reward model of one tokenizer, and a file of a text prompt and a chat prompt."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    for name, network in (("policy", GPT(CONFIG)), ("reward", ScalarGPT(CONFIG))):
        (folder / name).mkdir()
        tokenizer.save(folder / name)
        ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
        save_network(network, folder / name, **ids)
    write_manifest(folder / "reward", {"stage": "reward", "reward_mean": 0.5, "reward_std": 2.0})
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "and you?"}]
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "how?"}) + "\n" + json.dumps({"prompt": chat}) + "\n")
    return folder, ["how?", chat]


def test_a_reward_model_reads_the_whole_chat(models, capsys):
    folder, prompts = models
    words = ["generate", str(folder / "policy"), "--prompts", str(folder / "prompts.jsonl"), "--max_new_tokens", "5"]
    assert main([*words, "--judge", str(folder / "reward"), "--json"]) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = load_reward(folder / "reward")(prompts, [sample["text"] for sample in samples])
    assert [sample["reward"] for sample in samples] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("policy", "a language model (LlamaForCausalLM), not a reward model"),
        ("nothing", "no reward '"),
    ],
)
def test_what_is_no_judge(models, capsys, judge, message):
    folder, _ = models
    assert main(["generate", str(folder / "policy"), "--prompt", "a", "--judge", str(folder / judge)]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_reward_model_writes_no_text(models, capsys):
    folder, _ = models
    assert main(["generate", str(folder / "reward"), "--prompt", "a"]) != 0
    assert "is a reward model (LlamaForSequenceClassification), which scores text" in capsys.readouterr().err
