"""Model directories without transformers: round trips, and errors for damaged or unsupported ones."""

import errno
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from align.io.atomic import replacing_directory
from align.io.directory import load_network, save_network
from align.io.location import locate, read_config
from align.io.manifest import weights_fingerprint
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.rope_scaling import Llama3Scaling

SMALL = GPTConfig(vocab_size=11, layers=2, heads=2, kv_heads=1, width=8, ff_width=12, context=16)
GPT2 = GPTConfig(
    vocab_size=11, layers=1, heads=2, width=8, context=16, norm="layernorm", positions="learned", feed_forward="gelu",
    qkv_bias=True, bias=True,
)  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj.weight"


@torch.no_grad()
def network_of(config):
    network = GPT(config)
    for number, parameter in enumerate(network.parameters()):
        parameter.add_(torch.arange(parameter.numel()).view(parameter.shape) / 512 + number)
    return network


def save(network, directory, **options):
    save_network(network, directory, **{"bos_id": 0, "eos_ids": [1], "pad_id": 2} | options)
    return directory


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def model(tmp_path):
    return save(network_of(SMALL), tmp_path / "model")


def edit_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@st.composite
def configs(draw):
    kv_heads, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    positions = draw(st.sampled_from(["rope", "learned", "sinusoidal"]))
    head_width = draw(st.sampled_from([None, 2, 4]))
    scaling = st.none() | st.builds(Llama3Scaling, factor=st.floats(1, 64), original_context=st.integers(1, 64))
    width = kv_heads * groups * draw(st.sampled_from([2, 4])) if head_width is None else draw(st.sampled_from([4, 6]))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 20)),
        layers=draw(st.integers(1, 2)),
        heads=kv_heads * groups,
        kv_heads=draw(st.just(kv_heads)) if groups > 1 else None,
        width=width,
        head_width=head_width if head_width is None or head_width * kv_heads * groups != width else None,
        ff_width=draw(st.sampled_from([None, 3])),
        context=draw(st.integers(1, 20)),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        norm_placement=draw(st.sampled_from(["pre", "pre", "post"])),
        norm_eps=draw(st.floats(1e-9, 1e-2)),
        positions=positions,
        rope_theta=draw(st.floats(10.0, 1e6)) if positions == "rope" else 10000.0,
        rope_scaling=draw(scaling) if positions == "rope" else None,
        feed_forward=draw(st.sampled_from(["swiglu", "gelu"])),
        qkv_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(["none", "head"])),
        tied_embeddings=draw(st.booleans()),
        init_std=draw(st.floats(0.001, 0.1)),
        embedding_std=draw(st.floats(0.001, 1.0)),
        dropout=draw(st.sampled_from([0.0, 0.1, 0.3])),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs() | configs().map(lambda c: replace(c, norm="rmsnorm", norm_placement="pre", bias=c.qkv_bias)))
def test_round_trip(tmp_path_factory, config):
    directory = tmp_path_factory.mktemp("round") / "model"
    network = network_of(config)
    save(network, directory, max_shard_bytes=2000)
    assert read_config(directory) == config
    again = load_network(directory)
    assert again.config == config
    assert same(again, network)


def test_files_and_metadata(model):
    """The files that transformers expects; a tied matrix is written once."""
    assert {path.name for path in model.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    with safe_open(model / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    stored = load_file(model / "model.safetensors")
    ours = network_of(SMALL).state_dict()
    assert stored.keys() == ours.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in ours.items())
    assert json.loads((model / "generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def test_own_family_says_what_it_is(tmp_path):
    save(network_of(replace(SMALL, norm_placement="post")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("align_gpt", ["AlignGPT"])


def test_loaded_network_trains(model):
    network = load_network(model)
    assert network.training
    network(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in network.parameters())


def test_loaded_network_outlives_its_directory(model):
    """No memory map: truncating the file does not change a loaded network."""
    network = load_network(model)
    (model / "model.safetensors").write_bytes(b"")
    assert same(network, network_of(SMALL))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(tmp_path, dtype):
    network = network_of(SMALL)
    save(network, tmp_path, dtype=dtype)
    assert all(tensor.dtype == dtype for tensor in load_file(tmp_path / "model.safetensors").values())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert same(load_network(tmp_path, dtype=dtype), network.to(dtype))
    assert same(load_network(tmp_path), network.float())


def test_sharding(tmp_path):
    """Shards have at most the limit, or one tensor; the index is complete; the fingerprint does not change."""
    network = network_of(SMALL)
    save(network, tmp_path / "one")
    save(network, tmp_path / "many", max_shard_bytes=1000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        stored = load_file(tmp_path / "many" / file)
        assert all(index["weight_map"][name] == file for name in stored)
        assert len(stored) == 1 or sum(tensor.nbytes for tensor in stored.values()) <= 1000
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in network.state_dict().values())
    assert same(load_network(tmp_path / "many"), network)
    assert weights_fingerprint(tmp_path / "many") == weights_fingerprint(tmp_path / "one")


def test_weights_are_not_overwritten_in_place(model):
    with pytest.raises(FileExistsError, match=r"model\.safetensors.*replacing_directory"):
        save(network_of(SMALL), model)


def test_missing_tensor(model):
    edit_weights(model, lambda tensors: tensors.pop(DOWN))
    with pytest.raises(ValueError, match=DOWN):
        load_network(model)


def test_unexpected_tensor(model):
    edit_weights(model, lambda tensors: tensors.update({"model.extra": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"model\.safetensors.*model\.extra"):
        load_network(model)


def test_wrong_shape(model):
    edit_weights(model, lambda tensors: tensors.update({DOWN: torch.ones(8, 11)}))
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{DOWN}.*\[8, 11\].*\[8, 12\]"):
        load_network(model)


def test_wrong_type(model):
    edit_weights(model, lambda tensors: tensors.update({DOWN: torch.ones(8, 12, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{DOWN}.*\bI8\b.*\bF64\b.*\bF32\b.*\bF16\b.*\bBF16\b"):
        load_network(model)


def test_missing_weights(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors\b.*model\.safetensors\.index\.json"):
        load_network(model)


def test_pickled_weights_are_refused(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_network(model)


def test_truncated_weights_name_the_tensor(model):
    """Tensors are stored in the order of the header, so truncation affects the last one."""
    path = model / "model.safetensors"
    last = list(network_of(SMALL).state_dict())[-1]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{last}.*\b{size}\b.*\b{size - 3}\b"):
        load_network(model)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        weights_fingerprint(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model\.safetensors"),
        (b"\x80\x02}q\x00.", r"model\.safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ((1000).to_bytes(8, "little") + b"{", r"model\.safetensors.*header"),
        ((4).to_bytes(8, "little") + b"nope", r"model\.safetensors.*JSON"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', r"model\.safetensors.*JSON"),
        ((2).to_bytes(8, "little") + b"{}" + b"more", r"model\.safetensors.*metadata"),
    ],
)
def test_damaged_weights(model, content, message):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_network(model)
    assert "model.safetensors" in str(error.value)


def test_offsets_that_do_not_fit(model):
    """A header that would make two tensors share bytes."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"model\.safetensors.*offset.*\b[ab]\b"):
        load_network(model)


def test_index_naming_a_missing_shard(tmp_path):
    save(network_of(SMALL), tmp_path, max_shard_bytes=1000)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"index\.json.*{lost.name}"):
        load_network(tmp_path)


def test_index_naming_a_missing_tensor(tmp_path):
    save(network_of(SMALL), tmp_path, max_shard_bytes=1000)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = content["weight_map"][DOWN]
    tensors = load_file(tmp_path / file)
    del tensors[DOWN]
    save_file(tensors, tmp_path / file)
    with pytest.raises(ValueError, match=rf"index\.json.*{DOWN}.*{file}"):
        load_network(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json.*weight_map"):
        load_network(tmp_path)


def test_tied_head_that_is_stored_too(model):
    edit_weights(model, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same(load_network(model), network_of(SMALL))
    edit_weights(model, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"lm_head\.weight.*embed_tokens\.weight.*tie_word_embeddings"):
        load_network(model)


def test_buffers_of_older_files_are_passed_over(model, tmp_path):
    edit_weights(model, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert same(load_network(model), network_of(SMALL))
    directory = save(network_of(GPT2), tmp_path / "gpt2")
    mask = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    edit_weights(directory, lambda t: t.update({"transformer.h.0.attn.bias": mask}))
    assert same(load_network(directory), network_of(GPT2))


def test_gpt2_without_prefix(tmp_path):
    save(network_of(GPT2), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in stored.items()}, tmp_path / "model.safetensors")
    assert same(load_network(tmp_path), network_of(GPT2))


def test_config_that_disagrees_with_the_weights(model):
    edit_config(model, intermediate_size=13)
    with pytest.raises(ValueError, match=r"down_proj\.weight.*\[8, 12\].*\[8, 13\]"):
        load_network(model)


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": '])
def test_unreadable_config(model, content):
    (model / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_network(model)


def test_sources_that_are_no_directory(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_network(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_network(model / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"config\.json.*{model}"):
        load_network(tmp_path)
    assert locate(str(model)) == model


def test_hub_id(model, monkeypatch):
    """Only configuration, safetensors and tokenizer files are downloaded, nothing pickled."""
    asked = {}

    def snapshot_download(repo_id, *, allow_patterns):
        asked[repo_id] = allow_patterns
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert same(load_network("some-org/tiny.model"), network_of(SMALL))
    assert list(asked) == ["some-org/tiny.model"]
    matches = huggingface_hub.utils.filter_repo_objects
    offered = ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    refused = ["pytorch_model.bin", "onnx/model.onnx", "modeling_x.py", "flax_model.msgpack"]
    assert list(matches(offered + refused, allow_patterns=asked["some-org/tiny.model"])) == offered


@pytest.mark.parametrize("error", [FileNotFoundError, ConnectionError, ValueError])
def test_hub_that_does_not_answer(monkeypatch, error):
    def snapshot_download(repo_id, *, allow_patterns):
        raise error("offline\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=r"\A.*some-org/none.*offline.*\Z") as caught:
        load_network("some-org/none")
    assert "more" not in str(caught.value)


def test_full_disk_while_writing_weights(model):
    """A file size limit simulates a full disk: writing fails midway, and the old model survives."""
    before = weights_fingerprint(model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    bigger = network_of(replace(SMALL, width=64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=str(model)), replacing_directory(model) as fresh:
            save(bigger, fresh)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert weights_fingerprint(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_no_space_left_on_device(model, monkeypatch):
    """The library's own exception for ENOSPC becomes an OSError with the code."""

    def save_file(*args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(OSError, match=str(model)) as error, replacing_directory(model) as fresh:
        save(network_of(SMALL), fresh)
    assert error.value.errno == errno.ENOSPC
    assert same(load_network(model), network_of(SMALL))


def test_written_files_have_the_usual_permissions(tmp_path):
    """The library creates files that only their owner can read; ours follow the umask."""
    save(network_of(SMALL), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


PEAK = """
import sys, torch
from pathlib import Path
from align.model.config import GPTConfig
from align.io.directory import load_network, save_network
from align.model.gpt import GPT

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024

def growth(action):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is held now
    before = status("VmRSS")
    kept = action()
    return kept, status("VmHWM") - before

config = GPTConfig(vocab_size=64, layers=6, heads=8, width=512, context=16)
directory = Path(sys.argv[1])
network = GPT(config)
assert "torch._dynamo" not in sys.modules
size = 4 * network.num_parameters() / 2**20
def save(dtype, name, **shards):
    save_network(network, directory / name, bos_id=0, eos_ids=[1], pad_id=2, dtype=dtype, **shards)

save(None, "warm")
_, written = growth(lambda: save(torch.bfloat16, "half", max_shard_bytes=8 * 2**20))
del network
network, loaded = growth(lambda: load_network(directory / "warm"))
half, converted = growth(lambda: load_network(directory / "warm", dtype=torch.bfloat16))
assert "torch._dynamo" not in sys.modules, "loading a network should not load torch's compiler"
print(size, written, loaded, converted)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux: /proc/self/clear_refs")
def test_weights_are_in_memory_once(tmp_path):
    """Of 73 MiB of weights (6 layers of 3.1 M float32): loading may take these plus the largest tensor (3 MiB).

    Converting to half precision never takes both precisions; writing in half precision takes a shard (8 MiB).
    """
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    size, written, loaded, converted = map(float, done.stdout.split())
    assert size > 70
    assert written < 0.2 * size
    assert loaded < 1.15 * size
    assert converted < 0.9 * size
