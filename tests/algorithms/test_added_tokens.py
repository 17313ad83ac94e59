"""SFT with tokens that the base lacks: trained rows, untouched others, and a model directory that has them."""

import json
from pathlib import Path

import pytest
import torch

from align.algorithms.sft import SFT
from align.cli import main
from align.io.directory import load_network, save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer

NAMES = ["<tool>", "</tool>"]

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<|user|>' + message.content + '<|end|>' }}"
    "{% else %}{{ '<|assistant|><tool>' + message.content + '</tool><|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><tool>' }}{% endif %}"
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose matrices have one row more than its tokenizer has ids."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    config = GPTConfig(
        vocab_size=264, layers=2, heads=2, width=16, ff_width=16, context=40, tied_embeddings=request.param
    )
    tokenizer.save(folder / "model")
    save_network(GPT(config), folder / "model", bos_id=None, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    (folder / "model/chat_template.jinja").write_text(TEMPLATE)
    chats = [
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": f"a{n}"}]} for n in range(8)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


def fit(base: Path, run: Path, *extra: str) -> int:
    words = ["--model", "align.algorithms.SFT", "--model.init_args.init_from", str(base / "model")]
    words += [f"--model.init_args.add_tokens={json.dumps(NAMES)}", "--model.init_args.optimizer.lr", "0.05"]
    words += ["--data", "align.data.ChatData", "--data.init_args.tokenizer", str(base / "model")]
    words += ["--data.init_args.train", str(base / "chats.jsonl"), "--data.init_args.context", "40"]
    words += ["--data.init_args.cache_dir", str(base / "cache"), "--data.init_args.batch_size", "4"]
    words += ["--trainer.default_root_dir", str(run), "--trainer.max_steps", "5", "--trainer.max_epochs=-1"]
    return main(["fit", *words, "--trainer.enable_progress_bar", "false", *extra])


@pytest.mark.parametrize("lora", [False, True])
def test_the_model_directory_has_the_tokens_and_their_rows(base: Path, tmp_path: Path, lora: bool):
    """263 ids and 264 rows: the first new token takes the spare row, and the matrices grow by one."""
    extra = ["--model.init_args.lora", json.dumps({"rank": 2, "alpha": 4})] if lora else []
    assert fit(base, tmp_path, *extra) == 0
    tokenizer, before = Tokenizer.load(tmp_path / "model"), Tokenizer.load(base / "model")
    assert tokenizer.encode_template("<tool>a</tool>") == [263, *before.encode("a"), 264]
    network, old = load_network(tmp_path / "model"), load_network(base / "model")
    assert network.config.vocab_size == 265
    # Nothing that counts follows </tool>, so only <tool> is read.
    pairs = [(network.model.embed_tokens.weight, old.model.embed_tokens.weight, [263])]
    if old.lm_head is not None:
        pairs.append((network.lm_head.weight, old.lm_head.weight, [263, 264]))
    for rows, before_rows, trained in pairs:
        mean = before_rows[:263].mean(0)
        assert all(not torch.allclose(rows[number], mean, atol=1e-4) for number in trained)
        assert torch.equal(rows[:263], before_rows[:263]) == lora
    assert (tmp_path / "adapter").exists() == lora


def test_a_run_with_adapters_resumes_to_the_same_bits(base: Path, tmp_path: Path):
    lora = ["--model.init_args.lora", json.dumps({"rank": 2, "alpha": 4}), "--checkpoint.every_n_train_steps", "3"]
    assert fit(base, tmp_path / "whole", *lora) == 0
    assert fit(base, tmp_path / "resumed", *lora, "--checkpoint.save_top_k=-1") == 0
    (half,) = (tmp_path / "resumed/checkpoints").glob("*step=3.ckpt")
    assert fit(base, tmp_path / "resumed", *lora, "--ckpt_path", str(half)) == 0
    whole, resumed = (load_network(tmp_path / name / "model") for name in ("whole", "resumed"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_transformers_and_peft_read_the_result(base: Path, tmp_path: Path):
    """The merged model, and the adapter on the base once that has a row for each token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert fit(base, tmp_path, "--model.init_args.lora", json.dumps({"rank": 2, "alpha": 4})) == 0
    ids = torch.tensor([[97, 263, 98, 264]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        ours = load_network(tmp_path / "model").eval()(ids)
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=1e-5)
    bare = AutoModelForCausalLM.from_pretrained(base / "model")
    bare.resize_token_embeddings(265)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(bare, tmp_path / "adapter")(ids).logits
    torch.testing.assert_close(adapted, ours, rtol=0, atol=1e-5)


def test_what_would_change_the_other_rows_is_refused(base: Path, tmp_path: Path, capsys):
    extra = ["--model.init_args.lora", json.dumps({"rank": 2, "alpha": 4})]
    assert fit(base, tmp_path, *extra, "--model.init_args.optimizer.weight_decay", "0.1") == 1
    assert "optimizer.weight_decay" in capsys.readouterr().err


def test_tokens_need_a_model_to_be_added_to():
    with pytest.raises(ValueError, match="add_tokens"):
        SFT(network=GPT(GPTConfig(vocab_size=8, layers=1, heads=1, width=8)), add_tokens=NAMES)
