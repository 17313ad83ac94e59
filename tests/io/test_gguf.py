"""GGUF files as models: written by our export or by the gguf package, read through ``locate``."""

import json
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from naming import naming

from align.export.export_settings import ExportSettings
from align.export.gguf_file import check_gguf, write_gguf
from align.export.source import open_source
from align.io.directory import load_network, save_network
from align.io.gguf import conversion
from align.io.gguf.container import gguf_in
from align.io.gguf.reading import open_gguf
from align.io.location import locate, read_config
from align.io.manifest import read_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from align.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["The quick brown fox jumps over 13 lazy dogs; it's asleep.\n", "Größe, café 人工智能 😀 x\u00a0y\n"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, vocab_size=300)


def exported(network, tokenizer, directory, **options):
    """A GGUF file of a network, through a model directory."""
    tokenizer.save(directory / "model")
    save_network(network, directory / "model", bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=None)
    source, settings = open_source(str(directory / "model")), ExportSettings(format="gguf", **options)
    check_gguf(source, settings)
    write_gguf(source, directory, settings)
    return directory / "model.gguf"


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
FAMILIES = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": None, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "rope_parameters": LINEAR}),
    "smollm3": ("SmolLM3Config", {"pad_token_id": None}),
    "olmo2": ("Olmo2Config", {}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    ),
    "gpt2": ("GPT2Config", {}),
    "gptneox": ("GPTNeoXConfig", {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
}


@torch.no_grad()
def checkpoint(name, vocab_size, directory):
    """A random checkpoint of a family as transformers writes it, and its network."""
    kind, options = FAMILIES[name]
    shape = SHAPE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} if name == "gpt2" else SHAPE
    config = getattr(transformers, kind)(**shape | {"vocab_size": vocab_size} | options)
    torch.manual_seed(1)
    eager = {"attn_implementation": "eager"} if name == "gemma2" else {}
    network = transformers.AutoModelForCausalLM.from_config(config, **eager).eval()
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.2)
    network.save_pretrained(directory)
    return network


@torch.no_grad()
def logits(network):
    ids = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(6))
    found = network.eval()(ids)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_returns_from_gguf(tmp_path, tokenizer, name):
    """transformers -> our network -> GGUF -> our network: same configuration, same logits."""
    theirs = checkpoint(name, tokenizer.vocab_size + 3, tmp_path / "theirs")
    network = load_network(tmp_path / "theirs")
    file = exported(network, tokenizer, tmp_path)
    assert open_gguf(file).metadata.architecture == ("llama" if name == "mistral" else name)
    again = load_network(file)
    assert again.config == network.config
    # Gemma's weights are stored with 1 added.
    assert (logits(again) - logits(network)).abs().max() < (1e-5 if "gemma" in name else 1e-9)
    assert (logits(again) - logits(theirs)).abs().max() < 1e-3
    assert Tokenizer.load(file).fingerprint == Tokenizer.load(locate(file)).fingerprint


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"dtype": "float16"}, 1e-3),
        ({"dtype": "bfloat16"}, 4e-3),
        ({"quantize": "q8_0"}, 5e-3),
        ({"quantize": "q4_0"}, 0.13),
    ],
    ids=str,
)
def test_quantized_weights_are_read_within_their_error(tmp_path, tokenizer, options, most):
    """Relative to the largest weight of a matrix: half a step of the type, in q4_0 a whole one at one end."""
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, layers=2, heads=4, width=32, ff_width=64, context=64))
    again = load_network(exported(network, tokenizer, tmp_path, **options)).state_dict()
    for name, tensor in network.state_dict().items():
        assert (again[name] - tensor).abs().max() <= most * tensor.abs().max(), name


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q3_K", "IQ4_XS"])
def test_k_quants(tmp_path, tokenizer, kind):
    """Random blocks, whose values the gguf package's decoder gives; llama.cpp's own writer makes such files."""
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=4, width=256, ff_width=256, context=64)
    file = exported(GPT(config), tokenizer, tmp_path)
    stored = getattr(gguf.GGMLQuantizationType, kind)
    blocks = np.random.default_rng(0).integers(0, 60, (256, gguf.GGML_QUANT_SIZES[stored][1]), dtype=np.uint8)
    rewrite(file, replaced={"blk.0.ffn_up.weight": (blocks, stored)})
    right = torch.from_numpy(gguf.quants.dequantize(blocks, stored).copy())
    assert torch.equal(load_network(file).state_dict()["model.layers.0.mlp.up_proj.weight"], right)


def rewrite(file, *, replaced=None, added=None, dropped=(), fields=None):
    """Write a file again with other tensors or fields (None: without)."""
    reader = gguf.GGUFReader(file)
    values = {name: (field.contents(), field.types) for name, field in reader.fields.items() if "GGUF." not in name}
    for name, value in (fields or {}).items():
        values.pop(name, None)
        if value is not None:
            kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
            values[name] = (value, [getattr(gguf.GGUFValueType, kinds[type(value)])])
    writer = gguf.GGUFWriter(file.with_suffix(".new"), values.pop("general.architecture")[0])
    for name, (value, types) in values.items():
        writer.add_key_value(name, value, types[0], types[-1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        if tensor.name not in dropped:
            data, kind = (replaced or {}).get(tensor.name, (tensor.data, tensor.tensor_type))
            writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=kind)
    for name, (data, kind) in (added or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file.with_suffix(".new").replace(file)
    return file


@pytest.fixture
def small(tmp_path, tokenizer):
    """A GGUF file of a Llama."""
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=4, width=32, ff_width=64, context=64))
    return exported(network, tokenizer, tmp_path)


def test_a_file_is_converted_once(small, cache, monkeypatch):
    directory = locate(small)
    assert directory.is_relative_to(cache)
    assert directory.name == "model"
    monkeypatch.setattr(conversion, "_convert", None)
    assert locate(small) == directory
    (small.parent / "alone").mkdir()
    again = small.rename(small.parent / "alone" / "model.gguf")
    assert locate(again) == locate(again.parent) == directory


def test_the_manifest_says_where_it_came_from(small):
    rewrite(small, fields={"general.license": "apache-2.0", "general.name": "Small"})
    source = read_manifest(locate(small))["gguf"]
    assert (source["file"], source["architecture"], source["name"]) == (str(small), "llama", "Small")
    assert len(source["sha256"]) == 64
    assert "license: apache-2.0" in (locate(small) / "README.md").read_text()


def test_changed_content_is_converted_again(small):
    before = locate(small)
    rewrite(small, fields={"llama.rope.freq_base": 5.0})
    assert locate(small) != before
    assert read_config(small).rope_theta == 5.0


def test_which_directories_hold_a_gguf(small):
    assert gguf_in(small) == small
    folder = small.parent / "folder"
    folder.mkdir()
    assert gguf_in(folder) is None
    (folder / "a.gguf").touch()
    assert gguf_in(folder) == folder / "a.gguf"
    (folder / "b.gguf").touch()
    assert gguf_in(folder) is None


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"general.architecture": "mamba"}, ("general.architecture", "'mamba'", "llama", "gptneox")),
        ({"llama.block_count": None}, ("llama.block_count", "missing")),
        ({"llama.expert_count": 8}, ("llama.expert_count", 8)),
        ({"llama.expert_used_count": 2}, ("llama.expert_used_count", 2)),
        ({"llama.rope.dimension_count": 4}, ("llama.rope.dimension_count", 4, 8)),
        ({"llama.rope.dimension_count": 16}, ("llama.rope.dimension_count", 16, 8)),
        ({"llama.rope.scaling.type": "longrope"}, ("llama.rope.scaling.type", "'longrope'", "'yarn'")),
        ({"llama.attention.value_length": 4}, ("llama.attention.value_length", 4, 8)),
        ({"llama.attention.head_count": 3}, ("heads", "3")),
        ({"llama.feed_forward_length": 96}, ("blk.0.ffn_gate.weight", "[64, 32]", "[96, 32]")),
        ({"llama.block_count": 2}, ("blk.1.attn_q.weight", "missing")),
        ({"tokenizer.ggml.pre": "klingon"}, ("tokenizer.ggml.pre", "'klingon'")),
        ({"tokenizer.ggml.model": "rwkv"}, ("tokenizer.ggml.model", "'rwkv'")),
        ({"split.count": 3}, ("split.count", 3, "llama-gguf-split")),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(small, fields, parts, cache):
    if architecture := fields.get("general.architecture"):
        small.write_bytes(small.read_bytes().replace(b"llama", architecture.encode(), 1))
    else:
        rewrite(small, fields=fields)
    with pytest.raises(ValueError, match=naming(small, *parts)) as error:
        locate(small)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.safetensors"))


def test_missing_and_unexpected_tensors_are_named(small):
    norm = np.ones(32, dtype=np.float32), gguf.GGMLQuantizationType.F32
    rewrite(small, added={"blk.0.attn_gate.weight": norm})
    with pytest.raises(ValueError, match=naming(small, "blk.0.attn_gate.weight", "not part")):
        locate(small)
    rewrite(small, dropped=["output_norm.weight", "blk.0.attn_gate.weight"])
    with pytest.raises(ValueError, match=naming(small, "output_norm.weight", "missing")):
        locate(small)


def test_the_tokens_that_end_a_response_are_kept(tmp_path, tokenizer):
    network = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=32, context=32))
    extra = tokenizer.encode("\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": extra}))
    tokenizer.save(tmp_path / "model")
    several = Tokenizer.load(tmp_path / "model")
    assert several.stop_ids == (*tokenizer.stop_ids, *extra)
    file = exported(network, several, tmp_path)
    assert Tokenizer.load(file).stop_ids == Tokenizer.load(locate(file)).stop_ids == several.stop_ids


@pytest.fixture
def hub(small, tmp_path, monkeypatch):
    """A repository of the Hub with GGUF files only: its list of files, which may be changed."""
    import huggingface_hub

    snapshot, files = tmp_path / "snapshot", ["README.md", "model.gguf"]
    snapshot.mkdir()

    def download(repository, file):
        assert (repository, file) == ("owner/name", "model.gguf")
        return str(small)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda _: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return files


def test_a_repository_that_has_only_a_gguf_file(small, hub):
    assert locate("owner/name") == locate("owner/name/model.gguf") == locate(small)
    expected = Tokenizer.load(small).fingerprint
    assert Tokenizer.load("owner/name").fingerprint == Tokenizer.load("owner/name/model.gguf").fingerprint == expected


def test_one_of_several_gguf_files_must_be_named(small, hub):
    hub.append("small.gguf")
    for load in (locate, Tokenizer.load):
        with pytest.raises(ValueError, match=naming("owner/name", 2, "owner/name/model.gguf")):
            load("owner/name")
    assert locate("owner/name/model.gguf") == locate(small)
    hub[:] = ["README.md"]
    for load in (locate, Tokenizer.load):
        with pytest.raises(FileNotFoundError):
            load("owner/name")


@pytest.mark.parametrize("kept", [0, 3, 50, 5000, -100])
def test_truncated_files_are_named(small, kept):
    small.write_bytes(small.read_bytes()[:kept])
    with pytest.raises(ValueError, match=naming(small, "truncated")):
        locate(small)


def test_without_the_gguf_package(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=naming("gguf", "lightning-align[export]")):
        locate(small)


def test_other_divisors_than_llama_3_s_are_refused(tmp_path, tokenizer):
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        layers=1,
        heads=2,
        width=128,
        ff_width=32,
        context=64,
        rope_theta=500000.0,
        rope_scaling=Llama3Scaling(factor=32.0),
    )
    file = exported(GPT(config), tokenizer, tmp_path)
    rewrite(file, fields={"align.settings": None})
    assert read_config(file).rope_scaling == Llama3Scaling(factor=32.0)
    others = np.linspace(1, 8, 32, dtype=np.float32)
    rewrite(file, replaced={"rope_freqs.weight": (others, gguf.GGMLQuantizationType.F32)})
    with pytest.raises(ValueError, match=naming(file, "rope_freqs.weight", 500000.0)):
        locate(file)


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"llama.rope.scale_linear": 4.0}, LinearScaling(4.0)),
        ({"llama.rope.scaling.factor": 4.0}, LinearScaling(4.0)),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, YarnScaling(4.0, original_context=64)),
    ],
    ids=str,
)
def test_scalings_as_llama_cpp_reads_them(small, fields, scaling):
    """Its type is linear where a file has none, and its original context is the file's own."""
    assert read_config(rewrite(small, fields=fields)).rope_scaling == scaling
