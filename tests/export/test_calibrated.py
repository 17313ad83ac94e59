"""GPTQ and AWQ: the job given to llm-compressor, for which a stand-in runs here."""

import json
import sys

import pytest
import torch
from export_models import GPT2
from naming import naming
from transformers import AutoModelForCausalLM

from align.export.calibrated import calibration_rows
from align.export.export_settings import ExportSettings
from align.export.source import open_source
from align.export.write_export import export

CHAT = [{"role": "user", "content": "The fox?"}, {"role": "assistant", "content": "The dog."}]
STAND_IN = '''
"""Does not quantize: records the job, and copies the model."""
import json, pathlib, shutil

def oneshot(model, tokenizer, dataset, recipe, output_dir, **options):
    out = pathlib.Path(output_dir)
    shutil.copytree(model, out)
    asked = {"rows": dataset["input_ids"], "recipe": [vars(part) for part in recipe], **options}
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(fields | {"asked": asked}))
'''
PARTS = """
class Part:
    def __init__(self, **options):
        self.options = options
    def __repr__(self):
        return type(self).__name__
class GPTQModifier(Part): pass
class AWQModifier(Part): pass
class QuantizationModifier(Part): pass
def QuantizationArgs(**options): return options
def QuantizationScheme(**options): return options
class Dataset(dict):
    from_dict = classmethod(lambda cls, columns: cls(columns))
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A PYTHONPATH on which the libraries of the other environment are stand-ins."""
    root = tmp_path / "environment"
    for name, text in {
        "llmcompressor/__init__.py": STAND_IN,
        "llmcompressor/modifiers/__init__.py": "",
        "llmcompressor/modifiers/gptq.py": PARTS,
        "llmcompressor/modifiers/quantization.py": PARTS,
        "llmcompressor/modifiers/transform.py": PARTS,
        "compressed_tensors/__init__.py": "",
        "compressed_tensors/quantization.py": PARTS,
        "datasets.py": PARTS,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(root))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("method", "parts"), [("gptq", 1), ("awq", 2)])
def test_the_job(make, tmp_path, tokenizer, method, parts):
    model, out = make(), tmp_path / "out"
    settings = ExportSettings(quantize=method, calibration=("The fox jumps.", CHAT), quantizer_python=sys.executable)
    export(open_source(str(model)), out, settings)
    asked = json.loads((out / "config.json").read_text())["asked"]
    assert asked["rows"] == calibration_rows(tokenizer, settings.calibration, 64)
    assert len(asked["recipe"]) == parts
    scheme = asked["recipe"][-1]["options"]
    assert scheme["ignore"] == ["lm_head"]
    weights = scheme["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 32, True)
    theirs = AutoModelForCausalLM.from_pretrained(out)(torch.arange(9)[None]).logits
    assert torch.equal(theirs, AutoModelForCausalLM.from_pretrained(model)(torch.arange(9)[None]).logits)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [], "nothing is left of the job"


def test_calibration_texts_are_rendered_as_in_training(tokenizer):
    text, chat = calibration_rows(tokenizer, ["The fox jumps.", CHAT], 6)
    assert text == [tokenizer.bos_id, *tokenizer.encode("The fox jumps.")][:6]
    assert chat == tokenizer.render_chat(CHAT).ids[:6]


TEXT = {"calibration": ("The fox.",)}
PYTHON = {"quantizer_python": sys.executable}


@pytest.mark.parametrize(
    ("shape", "options", "named"),
    [
        ({}, PYTHON, ["quantize", "gptq", "--calibration"]),
        ({}, TEXT, ["quantize", "gptq", "python -m venv"]),
        (GPT2, TEXT | PYTHON, ["Conv1D", "gptq"]),
        ({"scalar": True}, TEXT | PYTHON, ["gptq", "--quantize int8"]),
        ({"ff_width": 48}, TEXT | PYTHON, [48, "gptq", 32]),
        ({}, TEXT | PYTHON, ["llmcompressor", "python -m venv"]),
        ({}, TEXT | {"quantizer_python": "/no/python"}, ["--quantizer_python", "/no/python", "python -m venv"]),
    ],
    ids=["no text", "no environment", "gpt2", "reward", "rows", "not installed", "no python"],
)
def test_what_cannot_be_done(make, tmp_path, shape, options, named):
    with pytest.raises(ValueError, match=naming(*named)):
        export(open_source(str(make(**shape))), tmp_path / "out", ExportSettings(quantize="gptq", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("environment")
def test_a_job_that_fails_is_told_in_one_line(make, tmp_path):
    (tmp_path / "environment" / "llmcompressor" / "__init__.py").write_text(
        "def oneshot(**options):\n    raise RuntimeError('no room on the device')\n"
    )
    settings = ExportSettings(quantize="awq", **TEXT, **PYTHON)
    with pytest.raises(ValueError, match=naming("awq", "RuntimeError", "no room on the device")):
        export(open_source(str(make())), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
