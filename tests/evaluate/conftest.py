"""A tiny model that align wrote, and tasks of lm-evaluation-harness that read local files."""

import json
from pathlib import Path

import pytest
import torch

from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

WORDS = ["one", "two", "three", "four", "five"]
TEXT = "one two three four five, said the fox. two and two is four. Question: Answer: "

_TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "Question: {{question}} Answer:"
        doc_to_choice: ["one", "two", "three four", "five"]
        doc_to_target: answer
        num_fewshot: 1
        fewshot_split: test
        fewshot_config: {sampler: first_n}
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "whole": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{question}}"
        metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
    """,
    "write": """
        output_type: generate_until
        doc_to_text: "{{question}} Answer:"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["e", "tw"], do_sample: false, max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
    """,
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 48 tokens."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([TEXT], vocab_size=256 + 24)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=2, heads=2, width=16, ff_width=32, context=48)
    network = GPT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    directory = tmp_path_factory.mktemp("evaluated") / "model"
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=list(tokenizer.stop_ids), pad_id=tokenizer.pad_id)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tasks on six questions."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [" ".join(WORDS[: 1 + i % 5]) + f" is {WORDS[i % 5]}?" for i in range(6)]
    rows = [{"question": question, "answer": i % 4} for i, question in enumerate(questions)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, body in _TASKS.items():
        head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        head += f"dataset_kwargs: {{data_files: {{test: {folder / 'questions.jsonl'}}}}}\n"
        lines = [line.strip() for line in body.strip().splitlines()]
        (folder / f"{name}.yaml").write_text(head + "\n".join(lines) + "\n")
    return folder
