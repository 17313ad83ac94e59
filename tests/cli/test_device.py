"""``--device``: the verbs that sample give the same on a device that is not the CPU, and say what is not there."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from another_device import AWAY, register
from naming import error_line, naming

from align.cli import main
from align.cli.device import network_device
from align.cli.errors import UsageError
from align.compare import respond
from align.generation.decoder import Decoder
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.rewards.reward_model import RewardModel
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=263, layers=2, heads=4, kv_heads=2, width=32, ff_width=32, context=96, init_std=0.3, embedding_std=0.5
)
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "and you?"}]
SFT, DPO, JUDGE, PROMPTS = "models/sft", "models/dpo", "models/reward", "models/prompts.jsonl"
SAMPLED = ["--n", "2", "--top_k", "20", "--top_p", "0.9", "--min_p", "0.01"]
GENERATE = ["generate", SFT, "--prompts", PROMPTS, "--max_new_tokens", "12", "--judge", JUDGE, "--json"]
COMPARE = ["compare", SFT, DPO, "--prompts", PROMPTS, "--judge", f"reward={JUDGE}", "--max_new_tokens", "6", "--out"]
COMMANDS = {
    "greedy": [*GENERATE, "--temperature", "0", "--repetition_penalty", "1.2"],
    "sampled": [*GENERATE, *SAMPLED],
    "streamed": ["generate", SFT, "--prompt", "how?", "--temperature", "0", "--stream", "yes", "--max_new_tokens", "9"],
    "chat": ["chat", SFT, DPO, "--temperature", "0", "--max_new_tokens", "8"],
    "preferences": ["preferences", SFT, "--prompts", PROMPTS, "--judge", JUDGE, "--out", "DEVICE/pairs.jsonl",
                    "--n", "2", "--max_new_tokens", "8", "--keep_unfinished"],
    "compare": [*COMPARE, "DEVICE/report", "--n", "2"],
    "compare, with the cache of the other": [*COMPARE, "report", "--n", "1", "--frontier_n", "0"],
}  # fmt: skip


def make_models(folder):
    """Two policies and a reward model of one tokenizer, a text prompt and a chat prompt."""
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    for seed, (name, kind) in enumerate({"sft": GPT, "dpo": GPT, "reward": ScalarGPT}.items()):
        network = kind(CONFIG)
        network.initialise(seed) if kind is GPT else network.initialise_head(seed)
        (folder / name).mkdir(parents=True)
        tokenizer.save(folder / name)
        ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
        save_network(network, folder / name, **ids)
    write_manifest(folder / "reward", {"stage": "reward", "reward_mean": 0.5, "reward_std": 2.0})
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in ("how?", CHAT, "a longer question about owls?")]
    (folder / "prompts.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "models"
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def outs(models):
    """All commands on the CPU and then on the other device; gives the lines that one printed on each."""
    home = models.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        work("cpu")
    places = [Path(__file__).parent, *Path(__file__).parents[1:3], os.environ.get("PYTHONPATH", "")]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
    words = [sys.executable, "-c", "import test_device; test_device.work_away()"]
    done = subprocess.run(words, cwd=home, env=os.environ | settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return lambda name: [(home / device / f"{name}.out").read_text().splitlines() for device in ("cpu", AWAY)]


def work_away():
    """What the process with another device does; the device is its process's for good."""
    library = register()
    work(AWAY)
    del library


def work(device):
    """Run all commands; see that networks and reward models compute on the device and nowhere else."""
    Path(device).mkdir()
    kind = device.partition(":")[0]
    for name, command in COMMANDS.items():
        with (
            pytest.MonkeyPatch.context() as patch,
            Path(device, f"{name}.out").open("w") as out,
            redirect_stdout(out),
        ):
            used = _spy(patch)
            patch.setattr(sys, "stdin", io.StringIO("a\nand b\n"))
            assert main([*(word.replace("DEVICE/", f"{device}/") for word in command), "--device", device]) == 0
            judged = any(JUDGE in word for word in command)
            assert used == {"networks": {kind}, "rewards": {kind} if judged else set()}


def _spy(patch):
    """Kinds of the devices where networks sample or measure, and where reward models score, from now on."""
    used = {"networks": set(), "rewards": set()}
    make, measure, score = Decoder.__init__, respond.logprobs, RewardModel.score_ids

    def making(decoder, network, *rest, **settings):
        used["networks"].add(network.output_weight.device.type)
        make(decoder, network, *rest, **settings)

    def measuring(network, *rest, **settings):
        used["networks"].add(network.output_weight.device.type)
        return measure(network, *rest, **settings)

    def scoring(reward, ids, lengths):
        used["rewards"].add(reward.network.score.weight.device.type)
        return score(reward, ids, lengths)

    patch.setattr(Decoder, "__init__", making)
    patch.setattr(respond, "logprobs", measuring)
    patch.setattr(RewardModel, "score_ids", scoring)
    # Parameters of the stand-in for a device are of a type of its own, which seem to compute something else.
    patch.setattr("align.generation.generate.can_pack", lambda network: True)
    return used


def test_generate(outs):
    """Greedy and sampled, with every setting that makes tensors of its own."""
    for name, count in (("greedy", 3), ("sampled", 6)):
        here, there = ([json.loads(line) for line in lines] for lines in outs(name))
        assert [s.pop("reward") for s in here] == pytest.approx([s.pop("reward") for s in there], abs=1e-5)
        assert here == there
        assert len({sample["text"] for sample in here}) == count


def test_generate_streams(outs):
    here, there = outs("streamed")
    assert here == there
    assert len("".join(here)) > len("> how?")


def test_chat(outs):
    """Two turns of two models, each in a thread of its own."""
    here, there = outs("chat")
    assert here == there
    assert [line.split()[0] for line in here if "> " in line] == ["sft>", "dpo>"] * 2


def test_preferences(outs, models):
    folders = [models.parent / device for device in ("cpu", AWAY)]
    here, there = ([json.loads(line) for line in (at / "pairs.jsonl").read_text().splitlines()] for at in folders)
    for name in ("score_chosen", "score_rejected"):
        assert [pair.pop(name) for pair in here] == pytest.approx([pair.pop(name) for pair in there], abs=1e-5)
    assert here == there
    assert len(here) == 3
    told = [json.loads((at / "pairs.jsonl.meta.json").read_text())["sampling"]["device"] for at in folders]
    assert told == ["cpu", "away"]


def test_compare(outs, models):
    """Responses, the KL to the baseline, a reward model's scores; ``work`` saw that a CPU's cache is not taken up."""
    folders = [models.parent / device / "report" for device in ("cpu", AWAY)]
    reports = [json.loads((at / "report.json").read_text()) for at in folders]
    assert [report["responses"]["device"] for report in reports] == ["cpu", AWAY]
    rows = [
        [json.loads(line)["responses"] for line in (at / "samples.jsonl").read_text().splitlines()] for at in folders
    ]
    for name in ("sft", "dpo"):
        here, there = ([response for row in table for response in row[name]] for table in rows)
        assert len(here) == 6
        assert [response["text"] for response in here] == [response["text"] for response in there]
        ratios = [[response["log_ratio"] for response in many] for many in (here, there)]
        assert ratios[0] == pytest.approx(ratios[1], abs=1e-4)
        assert all((ratio != 0) == (name == "dpo") for ratio in ratios[0])
        rewards = [[response["rewards"]["reward"] for response in many] for many in (here, there)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


@pytest.mark.parametrize("verb", ["generate", "chat", "compare", "preferences"])
def test_a_device_that_is_not_there(models, tmp_path, capsys, verb):
    own = {
        "generate": ["--prompt", "a"],
        "compare": [str(models / "dpo"), "--prompts", str(models / "prompts.jsonl"), "--out", str(tmp_path / "report")],
        "preferences": ["--prompts", str(models / "prompts.jsonl"), "--out", str(tmp_path / "pairs.jsonl")],
    }
    judge = ["--judge", "sandbox"] if verb in ("compare", "preferences") else []
    assert main([verb, str(models / "sft"), *own.get(verb, []), *judge, "--device", "cuda:99"]) == 2
    error_line(capsys, f"align {verb}", "--device", "cuda:99", "auto", alone=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "0", "gpu", "cuda:-1", "meta", "hpu"])
def test_what_is_no_device(name):
    with pytest.raises(UsageError, match=naming("--device", repr(name), "auto", "cpu")):
        network_device(name)


def test_auto_is_the_first_gpu_where_there_is_one(monkeypatch):
    for seen, device in ((True, "cuda:0"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert network_device("auto") == torch.device(device)
    assert network_device("cpu") == torch.device("cpu")
