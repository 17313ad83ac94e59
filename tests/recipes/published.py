"""Small random checkpoints that transformers writes, tiny data in the schemas of the Hub, and recipes of two steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ROOT = Path(__file__).resolve().parents[2]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ["the cat sat on a mat and the dog ran to a red house", "a man has two apples and eats one of them today"]


def _train(steps: list[Any], names: list[str], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def write_qwen2(directory: Path) -> Path:
    """Qwen2 as Qwen2.5-Instruct has it: ChatML, two tokens that end a response, tied, and more rows than ids."""
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _train([split, byte_level], names, normalizers.NFC())
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    fast.save_pretrained(directory)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=[fast.eos_token_id, fast.pad_token_id],
        pad_token_id=fast.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def write_smollm2(directory: Path) -> Path:
    """Llama as SmolLM2-Instruct has it: ChatML, single digits, bos <|im_start|>, pad and eos <|im_end|>, tied."""
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _train([digits, byte_level], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    end = "<|im_end|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token=end, pad_token=end, chat_template=CHATML
    )
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=fast.vocab_size + 3,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_gpt_neox(directory: Path) -> Path:
    """GPT-NeoX as Pythia has it: no chat template, no pad token, bos is eos, untied, and more rows than ids."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = _train([byte_level], ["<|endoftext|>", "<|padding|>"], normalizers.NFC())
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)
    fast.save_pretrained(directory)
    config = GPTNeoXConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        rotary_pct=0.25,
        use_parallel_residual=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(directory)
    return directory


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_records(file: Path, records: list[dict[str, Any]]) -> str:
    """A JSONL file; its path."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def write_chats(folder: Path) -> dict[str, str]:
    """Records as in no_robots, ultrafeedback_binarized, ultrafeedback-prompt and gsm8k; the variables of the recipe."""
    chats, pairs, prompts, questions = [], [], [], []
    for i in range(8):
        ask, good, bad = f"Count to {i}.", "the cat sat", f"a man {i}"
        chat = [_user(ask), _assistant(good)]
        chats.append({"prompt": ask, "prompt_id": str(i), "messages": chat, "category": "Generation"})
        scores = {"score_chosen": 8.0, "score_rejected": 6.5}
        pairs.append({"chosen": chat, "rejected": [_user(ask), _assistant(bad)], **scores})
        prompts.append({"prompt": [_user(ask)]})
        working = f"He has 1,000 + {i} = <<1000+{i}={1000 + i}>>{1000 + i}\n#### {1000 + i:,}"
        questions.append({"question": f"1000 and {i} apples?", "answer": working})
    files = {"chats": chats, "preferences": pairs, "prompts": prompts, "math": questions}
    found = {name: write_records(folder / f"{name}.jsonl", records) for name, records in files.items()}
    return found | {f"{name}_val": path for name, path in found.items()}


def write_tldr(folder: Path) -> dict[str, str]:
    """Records as in trl-lib/tldr and trl-lib/tldr-preference; the variables of the recipe."""
    summaries, comparisons = [], []
    for i in range(8):
        post = f"SUBREDDIT: r/cats\n\nTITLE: Cat {i}\n\nPOST: the cat sat\n\non a mat {i}\n\nTL;DR:"
        summaries.append({"prompt": post, "completion": f" cat {i} sat"})
        comparisons.append({"prompt": post, "chosen": f" cat {i} sat", "rejected": " a dog ran"})
    posts = write_records(folder / "tldr.jsonl", summaries)
    pairs = write_records(folder / "comparisons.jsonl", comparisons)
    return {"summaries": posts, "prompts": posts, "prompts_test": posts, "comparisons": pairs, "format": "TLDR"}


def write_hh(folder: Path) -> dict[str, str]:
    """Records as in Anthropic/hh-rlhf; the variables of the recipe."""
    start = "\n\nHuman: the cat?\n\nAssistant: a dog\n\nHuman: has {}?\n\nAssistant:"
    records = [{"chosen": start.format(i) + " two apples", "rejected": start.format(i) + " one"} for i in range(8)]
    file = write_records(folder / "hh.jsonl", records)
    return dict.fromkeys(("summaries", "comparisons", "prompts", "prompts_test"), file) | {"format": "HHText"}


def shrink(name: str, folder: Path, *, context: int = 200) -> Path:
    """A copy of a recipe whose stages take two steps on short rows; models and data are the caller's to set."""
    folder.mkdir(parents=True)
    source = ROOT / "recipes" / name
    for file in source.glob("*.jsonl"):
        shutil.copy(file, folder)
    for file in source.glob("*.yaml"):
        recipe = yaml.safe_load(file.read_text())
        if "stages" in recipe:
            _shrink_stages(recipe["stages"])
            (folder / file.name).write_text(yaml.safe_dump(recipe, sort_keys=False))
            continue
        trainer, settings, data = recipe["trainer"], recipe["model"]["init_args"], recipe["data"]["init_args"]
        trainer |= {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "limit_val_batches": 1}
        trainer |= {"max_steps": 2, "max_epochs": 1, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1}
        trainer |= {"val_check_interval": 1.0}
        settings["schedule"].pop("warmup_steps", None)
        data |= {"context": context, "batch_size": 2}
        if "max_prompt_tokens" in data:
            data["max_prompt_tokens"] = 190
        if "val_fraction" in data:
            data["val_fraction"] = 0.25
        if "rollout" in settings:
            group = {"group_size": 2} if settings["rollout"].get("group_size") else {}
            settings["rollout"] |= {"episodes": 4, "max_new_tokens": 8} | group
            settings["update"] |= {"epochs": 1, "minibatches": 2}
            settings.get("value", {}).pop("warmup_iterations", None)
        if "policy_evaluation" in settings:
            settings["policy_evaluation"] |= {"prompts": 2, "max_new_tokens": 8}
        (folder / file.name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def _shrink_stages(stages: dict[str, Any]) -> None:
    for stage in stages.values():
        if stage["command"] in ("generate", "compare"):
            stage["arguments"] |= {"limit": 4, "max_new_tokens": 8}
        if stage["command"] == "preferences":
            # A random network satisfies few constraints.
            stage["arguments"] |= {"skip": 0, "limit": 100, "max_new_tokens": 16, "keep_unfinished": True}
    if "drafts" in stages:
        # Few texts of a random network have words to edit.
        stages["drafts"]["arguments"] |= {"limit": 400, "max_new_tokens": 32}
