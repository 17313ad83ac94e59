"""align against `lm_eval --model hf` on the same tasks: CPU seconds, and how far their answers are apart.

python benchmarks/harness.py EXPORT --questions ../shared/data/gsm8k-test.jsonl \
    --texts recipes/smollm2-135m/text.jsonl --threads 1 --out benchmarks/results/harness.json

Three tasks of local files: multiple choice with two examples and four choices, whole texts, and greedy responses of up
to 64 tokens. The questions are GSM8K's, ``{"question", "answer"}`` with the answer after ``####``. The last round's
outputs are compared: log-likelihoods by their largest difference in nats, responses by how many differ. The harness's
softmax is computed in float64, because its float32 rounds more.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure

TASKS = {
    "choice": """output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
num_fewshot: 2
fewshot_split: test
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}]""",
    "texts": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]""",
    "respond": """output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["Question:", "\\n\\n"], do_sample: false, max_gen_toks: 64}
metric_list: [{metric: exact_match}]""",
}
LIMITS = {"choice": 48, "texts": 40, "respond": 24}


def write_tasks(folder: Path, questions: Path, texts: Path) -> None:
    """The three tasks as YAML files with their data beside them."""
    rows = []
    for number, line in enumerate(questions.read_text().splitlines()[: max(LIMITS.values())]):
        record = json.loads(line)
        answer = int(record["answer"].rpartition("####")[2].replace(",", ""))
        choices = [f"{value} in all." for value in (answer, answer + 1, answer + 7, answer - 2)]
        label = number % 4
        choices[0], choices[label] = choices[label], choices[0]
        rows.append({"question": record["question"], "choices": choices, "label": label})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text(texts.read_text())
    for name, body in TASKS.items():
        file = folder / ("texts.jsonl" if name == "texts" else "questions.jsonl")
        head = f"task: {name}\ndataset_path: json\ntest_split: test\ndataset_kwargs: {{data_files: {{test: {file}}}}}\n"
        (folder / f"{name}.yaml").write_text(head + body + "\n")


def answers(model: Any, setting: measure.Setting) -> Iterator[list[Any]]:
    """What the model gives for the task of a setting, one list per item."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=setting["folder"], include_defaults=False)
    name = setting["name"]
    found = simple_evaluate(
        model=model, tasks=[name], task_manager=manager, limit=LIMITS[name], bootstrap_iters=0, batch_size=8
    )
    assert found is not None
    yield from (item["filtered_resps"] for item in found["samples"][name])


def run(model: Any, setting: measure.Setting, peer: str) -> measure.Numbers:
    began, wall = time.process_time(), time.perf_counter()
    found = list(answers(model, setting))
    numbers = {"cpu_s": time.process_time() - began, "wall_s": time.perf_counter() - wall}
    Path(setting["folder"], f"{setting['name']}-{peer}.json").write_text(json.dumps(found))
    return numbers


def ours(setting: measure.Setting) -> measure.Numbers:
    from align.evaluate.harness_model import HarnessModel
    from align.io.directory import load_network
    from align.tokenizer import Tokenizer

    directory = Path(setting["model"])
    model = HarnessModel(load_network(directory).eval(), Tokenizer.load(directory), batch_size=64)
    return run(model, setting, "align")


def theirs(setting: measure.Setting) -> measure.Numbers:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=setting["model"], dtype="float32", softmax_dtype="float64", batch_size=8, device="cpu")
    return run(model, setting, "hf")


def compare(folder: Path) -> None:
    """Print how far the answers of the two are apart."""
    for name in TASKS:
        mine, other = (json.loads((folder / f"{name}-{peer}.json").read_text()) for peer in ("align", "hf"))
        pairs = [pair for left, right in zip(mine, other, strict=True) for pair in zip(left, right, strict=True)]
        if name == "respond":
            print(f"{name}: {sum(left != right for left, right in pairs)} of {len(pairs)} responses differ")
        else:
            numbers = [[one if isinstance(one, float) else one[0] for one in pair] for pair in pairs]
            gap = max(abs(left - right) for left, right in numbers)
            print(f"{name}: log-likelihoods differ by at most {gap:.1e} nats in {len(pairs)} answers")


if __name__ == "__main__":
    peers = {"align": ours, "hf": theirs}
    parser = measure.parser(__doc__ or "", peers)
    parser.add_argument("model", nargs="?", help="what `align export` wrote: its tokenizer is left as it is")
    parser.add_argument("--questions", type=Path, help="JSONL of GSM8K's format")
    parser.add_argument("--texts", type=Path, help="JSONL of {'text': ...}")
    args = parser.parse_args()
    with TemporaryDirectory() as scratch:
        if not args.child:
            if not (args.model and args.questions and args.texts):
                sys.exit("give MODEL, --questions and --texts")
            write_tasks(Path(scratch), args.questions, args.texts)
        settings = [{"name": name, "model": args.model, "folder": scratch} for name in TASKS]
        measure.main(args, peers, settings, columns=["cpu_s", "wall_s", "peak_rss_mb"])
        if not args.child:
            compare(Path(scratch))
