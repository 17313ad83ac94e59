"""Exports for transformers, loaded by transformers."""

import json

import jinja2
import pytest
import torch
from export_models import GPT2
from naming import naming
from network_options import STYLES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TorchAoConfig

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.export.write_export import export
from align.io.directory import load_network, load_scalar
from align.io.manifest import read_manifest
from align.model.gpt import GPT
from align.tokenizer.plain_template import plain_template

IDS = torch.arange(7, 47)[None]


@torch.no_grad()
def logits(directory, **options):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", **options).eval()
    return model(IDS).logits.float()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, GPT2, {"qk_norm": "head"}], ids=["llama", "gpt2", "qwen3"])
def test_transformers_reads_what_was_written(make, tmp_path, options):
    model, out = make(**options), tmp_path / "out"
    report = export(open_source(str(model)), out, ExportSettings(max_shard_bytes=20_000))
    assert len(report["files"]) > 2, "the limit is far below the size"
    assert (logits(out) - load_network(model).eval()(IDS)).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(out).encode("The fox") == AutoTokenizer.from_pretrained(model).encode(
        "The fox"
    )


@torch.no_grad()
def test_a_reward_model_and_its_normalisation(make, tmp_path):
    model, out = make(scalar=True), tmp_path / "out"
    manifest = json.loads((model / "align.json").read_text()) | {"reward_mean": 0.25}
    (model / "align.json").write_text(json.dumps(manifest))
    export(open_source(str(model)), out, ExportSettings())
    theirs = AutoModelForSequenceClassification.from_pretrained(out).eval()(IDS).logits[0, 0]
    assert abs(theirs - load_scalar(model).eval()(IDS, torch.tensor([40]))[0]) < 1e-5
    assert read_manifest(out)["reward_mean"] == 0.25


def test_dtype(make, tmp_path):
    export(open_source(str(make())), tmp_path / "out", ExportSettings(dtype="bfloat16"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_a_type_too_small_and_a_damaged_source_are_refused(make, tmp_path):
    source = open_source(str(make()))
    weight = source.network.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=naming("layers.1.mlp.up_proj.weight", "1e+05", "float16", "6.55e+04")):
        export(source, tmp_path / "out", ExportSettings(dtype="float16"))
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=naming("up_proj.weight", "nan")):
        export(source, tmp_path / "out", ExportSettings())
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_twin_is_refused(make, tmp_path):
    source = open_source(str(make(norm_placement="post")))
    with pytest.raises(ValueError, match=naming("transformers", "norm_placement", "post")):
        export(source, tmp_path / "out", ExportSettings())


QUANTIZED = {name: style for name, style in STYLES.items() if name not in ("gpt2", "post")}
for _name in ("gemma2", "gemma3"):
    # In transformers it is one over the square root of an integer.
    QUANTIZED[_name] = QUANTIZED[_name] | {"attention_scale": 0.25}


@pytest.mark.parametrize("options", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_int8_is_what_transformers_makes_of_the_source(make, tmp_path, options):
    """Bitwise identical to transformers' own quantization with torchao while loading."""
    from torchao.quantization import Int8WeightOnlyConfig

    model, out = make(**options), tmp_path / "out"
    export(open_source(str(model)), out, ExportSettings(quantize="int8"))
    theirs = logits(model, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert torch.equal(logits(out), theirs)
    assert 0 < (theirs - logits(model)).abs().max() < 0.5
    assert (out / "model.safetensors").stat().st_mode & 0o044, "others may read it"


@torch.no_grad()
def test_int8_leaves_the_source_and_the_score_alone(make, tmp_path):
    source = open_source(str(make(scalar=True)))
    before = {name: tensor.clone() for name, tensor in source.network.state_dict().items()}
    export(source, tmp_path / "out", ExportSettings(quantize="int8"))
    assert all(torch.equal(before[name], tensor) for name, tensor in source.network.state_dict().items())
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(theirs.score.weight, before["score.weight"])
    assert abs(theirs(IDS).logits[0, 0] - source.network(IDS, torch.tensor([40]))[0]) < 0.2


def test_int8_of_gpt2_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match=naming("Conv1D", "torchao")):
        export(open_source(str(make(**GPT2))), tmp_path / "out", ExportSettings(quantize="int8"))


def test_int8_does_not_shard(make, tmp_path):
    with pytest.raises(ValueError, match=naming("int8", "max_shard_size", "1,000")):
        export(open_source(str(make())), tmp_path / "out", ExportSettings(quantize="int8", max_shard_bytes=1000))


def test_an_export_is_a_source_again(make, tmp_path):
    export(open_source(str(make())), tmp_path / "out", ExportSettings())
    again = open_source(str(tmp_path / "out"))
    assert isinstance(again.network, GPT)


def test_the_source_s_sampling_defaults_and_ids_are_kept(make, tmp_path):
    """The tokenizer has another padding token, and one more token that ends a response."""
    model = make()
    defaults = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "repetition_penalty": 1.1}
    ids = {"bos_token_id": 3, "eos_token_id": 7, "pad_token_id": 7}
    (model / "generation_config.json").write_text(json.dumps(defaults | ids))
    source = open_source(str(model))
    assert source.tokenizer.pad_id != 7
    export(source, tmp_path / "out", ExportSettings())
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert source.tokenizer.stop_ids[-1] == 7
    stops = [7, *source.tokenizer.stop_ids[:-1]]
    assert written == defaults | ids | {"eos_token_id": stops}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[name] for name in ids] == [3, stops, 7]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (loaded.temperature, loaded.top_p, loaded.pad_token_id, loaded.eos_token_id) == (0.6, 0.9, 7, stops)


def test_templates_are_plain(make, tmp_path):
    """Plain jinja2, transformers and llama.cpp render an exported template as transformers renders the source's."""
    model = make(context=128)
    tagged = (
        "{{ bos_token }}{%- for m in messages %}\n<|{{ m.role }}|>\n  {% if m.role == 'assistant' -%}\n"
        "{%- generation -%}\n  "
        "{{ m.content }}<|end|>  {%- endgeneration %}\n{% else %}{{ m.content }}{% generation %}\n<|end|>\n"
        "{% endgeneration %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": tagged}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    chat = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "a dog"}]
    chat.append({"role": "user", "content": "Say 12."})
    options = {"add_generation_prompt": True}
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(chat, tokenize=False, **options)

    plain, source = tmp_path / "plain", open_source(str(model))
    export(source, plain, ExportSettings())
    again = AutoTokenizer.from_pretrained(plain)
    assert "generation %" not in again.chat_template
    assert again.apply_chat_template(chat, tokenize=False, **options) == expected
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert (
        environment.from_string(again.chat_template).render(messages=chat, bos_token="<|bos|>", **options) == expected
    )

    export(source, tmp_path / "gguf", ExportSettings(format="gguf"))
    reading = LlamaReading(tmp_path / "gguf" / FILE, context=128, vocab_size=source.network.config.vocab_size)
    assert reading.chat_ids(chat) == again(expected, add_special_tokens=False)["input_ids"]
    reading.close()


def test_our_own_template_is_plain_wherever_it_is_written(make):
    template = open_source(str(make())).tokenizer.spec.chat_template
    assert plain_template(template) == template
    jinja2.Environment().from_string(template)
