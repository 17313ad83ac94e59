"""The directory that an export writes, replaces, or refuses to."""

import errno
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from export_models import random_network, write_model
from naming import names, naming

from align.export.export_settings import ExportSettings
from align.export.source import open_source
from align.export.verify import Tolerance
from align.export.write_export import Check, export
from align.io.directory import load_network
from align.io.manifest import read_manifest, weights_fingerprint
from align.model.config import GPTConfig

PROMPTS = ["The fox", "Say 12.", [{"role": "user", "content": "the dog?"}]]


def check(**options):
    return Check(PROMPTS, max_new_tokens=8, **options)


def judge(prompts, responses):
    """Counts letters, so that different responses have different rewards."""
    return [float(len(response)) for response in responses]


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"format": "gguf"}, {"format": "gguf", "quantize": "q8_0"}],
    ids=lambda options: "-".join(options.values()) or "plain",
)
def test_verified_by_the_program_it_is_for(make, tmp_path, options):
    source, out = open_source(str(make(tied_embeddings=False))), tmp_path / "out"
    tolerance = Tolerance(perplexity=0.2, reward=1.0)
    report = export(source, out, ExportSettings(**options), checked=check(judge=judge, tolerance=tolerance))
    found = report["verification"]
    assert ("llama.cpp" if options.get("format") else "transformers") in found["read_by"]
    assert found["prompts"] == 3
    assert found["tokens"] > 3
    assert found["perplexity_source"] == pytest.approx(found["perplexity_export"], rel=0.2)
    if "quantize" not in options and "dtype" not in options:
        assert (found["same_text"], found["win_rate"]) == (3, 0.5)
        assert abs(found["kl"]) < 1e-7
        assert (found["top1"], found["responses"]) == (1.0, 3)
    assert read_manifest(out)["export"]["verification"] == found


def test_a_reward_model_is_verified_by_its_scores(make, tmp_path):
    source = open_source(str(make(scalar=True)))
    report = export(source, tmp_path / "out", ExportSettings(), checked=check())
    assert report["verification"]["score_difference"] < 1e-5
    assert report["verification"]["tokens"] == 3


def test_a_difference_above_the_tolerance_fails_and_leaves_the_old_export(make, tmp_path):
    source, out = open_source(str(make())), tmp_path / "out"
    export(source, out, ExportSettings())
    before = weights_fingerprint(out)
    strict = check(tolerance=Tolerance(kl=1e-9))
    with pytest.raises(ValueError, match=naming("kl", "1e-09", "transformers", "--tolerance_kl")):
        export(source, out, ExportSettings(dtype="bfloat16"), checked=strict)
    assert weights_fingerprint(out) == before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_a_worse_judge_fails(make, tmp_path):
    def falling(prompts, responses, calls=[]):  # noqa: B006 (counts its calls)
        calls.append(1)
        return [1.0 / len(calls)] * len(responses)

    with pytest.raises(ValueError, match=naming("reward", 0.5, 0.01)):
        export(open_source(str(make())), tmp_path / "out", ExportSettings(), checked=check(judge=falling))


def test_weights_that_are_not_the_source_s_are_found(make, tmp_path, monkeypatch):
    """Verification finds a matrix under the wrong name."""
    from align.io.gguf.architectures import Llama

    monkeypatch.setattr(Llama, "alternates", False)
    with pytest.raises(ValueError, match=naming("kl_rounded")):
        export(open_source(str(make())), tmp_path / "out", ExportSettings(format="gguf"), checked=check())
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_found(make, tmp_path, monkeypatch):
    from align.export import gguf_tokenizer

    monkeypatch.setattr(gguf_tokenizer, "find_pre_tokenizer", lambda spec: gguf_tokenizer.PRE_TOKENIZERS[0])
    prompts = ["a  12345\r\n\n b", "She said: 'I'LL go'"]
    with pytest.raises(ValueError, match=naming("tokenizer", repr(prompts[0]))):
        export(open_source(str(make())), tmp_path / "out", ExportSettings(format="gguf"), checked=Check(prompts))


def test_a_full_disk_leaves_the_old_export(make, tmp_path):
    """RLIMIT_FSIZE: no file may grow beyond half the weights."""
    source, out = open_source(str(make())), tmp_path / "out"
    export(source, out, ExportSettings(dtype="bfloat16"))
    before = weights_fingerprint(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for settings in (ExportSettings(), ExportSettings(format="gguf"), ExportSettings(quantize="int8")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(OSError, match=naming(out)) as caught:
                export(source, out, settings)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert weights_fingerprint(out) == before
    signal.signal(signal.SIGXFSZ, ignored)
    assert load_network(out)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


_KILLED = """
import sys
from align.export import write_export
from align.export.export_settings import ExportSettings
from align.export.write_export import export
from align.export.source import open_source
def stop(*args, **kwargs):
    print("half", flush=True)
    sys.stdin.read()
write_export._finish = stop
export(open_source(sys.argv[1]), sys.argv[2], ExportSettings())
"""


def test_a_kill_leaves_the_old_export(make, tmp_path):
    """Killed after writing weights and before the card: the old directory is whole."""
    model, out = make(), tmp_path / "out"
    export(open_source(str(model)), out, ExportSettings(dtype="bfloat16"))
    before = weights_fingerprint(out)
    child = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(model), str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert weights_fingerprint(out) == before
    export(open_source(str(model)), out, ExportSettings())
    assert weights_fingerprint(out) != before
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_only_exports_are_replaced(make, tmp_path):
    source = open_source(str(make()))
    for name, file in (("stage", "align.json"), ("foreign", "config.json"), ("photos", "dog.png")):
        target = tmp_path / name
        if name == "stage":
            write_model(target, source.network, source.tokenizer)
        else:
            target.mkdir()
            (target / file).write_text("{}")
        with pytest.raises(ValueError, match=naming(target, "--out")):
            export(source, target, ExportSettings())
        assert (target / file).exists()
    with pytest.raises(ValueError, match=naming(tmp_path / "photos" / "dog.png", "--out")):
        export(source, tmp_path / "photos" / "dog.png", ExportSettings())


@pytest.fixture
def chain(tmp_path, tokenizer, monkeypatch):
    """pretrain -> sft, as two runs whose manifests name paths from where they ran."""
    monkeypatch.chdir(tmp_path)
    network = random_network(GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=32, context=32))
    Path("data").mkdir()
    Path("data/sft.jsonl").write_text("{}\n")
    told = {"what": "preference pairs", "model": {"directory": "runs/x"}, "judge": {"name": "sandbox"}}
    Path("data/sft.jsonl.meta.json").write_text(json.dumps(told))
    first = write_model(Path("runs/pretrain/model"), network, tokenizer, stage="pretrain", recipe={"lr": 1})
    (first / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")
    (first / "LICENSE").write_text("Apache License")
    parent = {"directory": str(first), "weights": weights_fingerprint(first), "stage": "pretrain"}
    data = {"data/sft.jsonl": "ab" * 32}
    return write_model(Path("runs/sft/model"), network, tokenizer, parent=parent, data=data, recipe={"lr": 2})


def test_the_card_tells_the_lineage(chain, tmp_path, monkeypatch):
    card = tmp_path / "my-data.md"
    card.write_text("# Data")
    monkeypatch.chdir(chain)  # recorded paths are found from the folders above the model too
    export(open_source("."), tmp_path / "out", ExportSettings(limits="Knows nothing."), data_cards=[card])
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    assert "| pretrain | `runs/pretrain/model` | 3 |  | " in text
    assert "\n# sft of pretrain, " in text
    assert names(text, "`data/sft.jsonl`", "`abababababababab`", "preference pairs", "`runs/x`", "`sandbox`")
    assert "[my-data](data_cards/my-data.md)" in text
    assert (tmp_path / "out" / "data_cards" / "my-data.md").read_text() == "# Data"
    assert (tmp_path / "out" / "LICENSE").read_text() == "Apache License"
    assert "Knows nothing." in text
    assert '"lr": 1' in text
    assert "| val/loss | 1.5 |" in text
    assert "`--verify`" in text


@pytest.mark.parametrize("settings", [ExportSettings(), ExportSettings(format="gguf")], ids=["hf", "gguf"])
def test_a_model_of_the_hub_is_named_by_its_id(tokenizer, tmp_path, settings):
    """The parent is recorded by its id, or lies in the Hub's cache on this machine alone."""
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=32, context=32)
    snapshot = "/home/me/hub/models--owner--small/snapshots/0123"
    for number, directory in enumerate(("owner/small", snapshot)):
        parent = {"directory": directory, "weights": None, "stage": None}
        data = {"owner/data:train": "hub:owner/data:train@0123"}
        model = write_model(
            tmp_path / f"{number}/sft/model", random_network(config), tokenizer, parent=parent, data=data
        )
        out = tmp_path / f"{number}/out"
        export(open_source(str(model)), out, settings)
        text = (out / "README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert (front["base_model"], front["datasets"]) == ("owner/small", ["owner/data"])
        assert "\n# sft of small, " in text
        assert "/home/me" not in text
        if settings.format == "gguf":
            fields = gguf.GGUFReader(out / "model.gguf").fields
            assert fields["general.name"].contents() == "sft of small"
            assert fields["general.base_model.0.organization"].contents() == "owner"


def test_a_parent_that_changed_or_is_gone_is_told(chain, tmp_path, tokenizer):
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=32, context=32)

    def row():
        """The line of the card that tells of the parent."""
        lines = Path("out/README.md").read_text().splitlines()
        return next(line for line in lines if line.startswith("| pretrain | `runs/pretrain/model` |"))

    export(open_source(str(chain)), "out", ExportSettings())
    as_recorded = row()
    for path in Path("runs/pretrain/model").iterdir():
        path.unlink()
    torch.manual_seed(9)
    network = random_network(config)
    with torch.no_grad():
        network.model.norm.weight.add_(1)
    write_model(Path("runs/pretrain/model"), network, tokenizer, stage="pretrain")
    export(open_source(str(chain)), "out", ExportSettings())
    changed = row()
    assert changed.startswith("| pretrain | `runs/pretrain/model` | 3 |  | ")
    Path("runs/pretrain").rename("runs/elsewhere")
    export(open_source(str(chain)), "out", ExportSettings(licence="mit"))
    assert row().startswith("| pretrain | `runs/pretrain/model` |  |  | ")
    assert len({line.split(" | ")[-1] for line in (as_recorded, changed, row())}) == 3
    assert Path("out/README.md").read_text().startswith("---\nlicense: mit\n")


def test_impossible_settings():
    with pytest.raises(ValueError, match=naming("quantize", "q4_0", "hf", "none", "int8", "gptq", "awq")):
        ExportSettings(quantize="q4_0")
    with pytest.raises(ValueError, match=naming("quantize", "int8", "format", "gguf", "hf")):
        ExportSettings(format="gguf", quantize="int8")
    with pytest.raises(ValueError, match=naming("dtype", "float8", "auto", "float32")):
        ExportSettings(dtype="float8")
