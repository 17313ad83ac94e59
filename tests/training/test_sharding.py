"""Sharding in one process; tests/cli/test_scale.py has the rest."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from align.adapters.lora import LoraConfig, adapter_parameters, adapters, add_adapter, using_adapter
from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.io.lightning_checkpoint import is_checkpoint, read_stored
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.sharding import by_mesh, check_split, clip_gradients, gathered, is_sharded, total_norm, whole_copy

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=4, kv_heads=2, width=16, ff_width=24, context=12)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory):
    """A mesh of one process."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("devices", "line"),
    [(4, r"kv_heads\D*2\b.*\b4\b"), (3, r"\bheads\D*4\b.*\b3\b")],
)
def test_a_network_that_can_not_be_split_is_refused(devices: int, line: str):
    check_split(CONFIG, 2)
    with pytest.raises(ValueError, match=rf"{line}.*tensor_parallel_size.*\bheads\D*4\b.*kv_heads\D*2\b"):
        check_split(CONFIG, devices)


def test_the_norm_of_all_gradients_and_clipping_to_it():
    """Gradients 3 and 4 have norm 5; clipped to 1 they are 0.6 and 0.8; a norm below the bound does not change."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([0.0, 3.0]), torch.tensor([4.0])
    assert total_norm([p.grad for p in parameters[:2]]).item() == pytest.approx(5)
    clip_gradients(parameters, 6.0)
    assert parameters[1].grad.item() == 4.0
    clip_gradients(parameters, 1.0)
    assert parameters[0].grad.tolist() == pytest.approx([0, 0.6], abs=1e-6)
    assert parameters[1].grad.tolist() == pytest.approx([0.8], abs=1e-6)
    assert total_norm([]).item() == 0


def test_cut_and_uncut_tensors_are_kept_apart(mesh):
    from torch.distributed.tensor import distribute_tensor

    cut, uncut = distribute_tensor(torch.tensor([3.0]), mesh["data_parallel"]), torch.tensor([4.0])
    assert [len(part) for part in by_mesh([cut, uncut, cut])] == [2, 1]
    assert total_norm([cut, uncut]).item() == pytest.approx(5)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2), LoraConfig(rank=2, dora=True)], ids=["", "lora", "dora"])
def test_a_gathered_network_is_an_ordinary_one_on_the_same_memory(mesh, lora: LoraConfig | None):
    """FSDP2 over one process: inside ``gathered``, samples equal those of the unsharded network."""
    from torch.distributed.fsdp import fully_shard

    network = GPT(CONFIG)
    if lora is not None:
        add_adapter(network, lora)
        for part in adapter_parameters(network).values():
            part.data += 0.5 * torch.randn(part.shape, generator=torch.Generator().manual_seed(0))
    expected = generate(network, [[1, 2, 3]], SamplingConfig(max_new_tokens=5), seeds=[7])
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for layer in network.model.layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"], reshard_after_forward=False)
    assert is_sharded(network)
    with gathered(network) as twin:
        assert type(twin) is GPT
        assert not is_sharded(twin)
        assert adapters(twin) == adapters(network)
        got = generate(twin, [[1, 2, 3]], SamplingConfig(max_new_tokens=5), seeds=[7])
        if lora is not None:
            with using_adapter(twin, None):
                assert not torch.equal(twin(got.ids), network(got.ids)), "the twin's switch is its own"
    assert torch.equal(got.ids, expected.ids)
    assert is_sharded(network)
    copy = whole_copy(network)
    assert copy is not network
    assert adapters(copy) == adapters(network)
    assert all(torch.equal(tensor, state[name]) for name, tensor in copy.state_dict().items())


def test_what_is_not_cut_stays_as_it_is():
    network = GPT(CONFIG)
    assert whole_copy(network) is network
    with gathered(network) as same:
        assert same is network
    with gathered(None) as nothing:
        assert nothing is None


class TestShardedCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path: Path, mesh) -> Path:
        from torch.distributed.checkpoint import FileSystemWriter, save

        folder = tmp_path / "step=3.ckpt"
        state = {"network.a": torch.arange(6.0), "network.b": torch.ones(2, 3)}
        optimizer = {
            "state": {"network.a": {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.5, "params": ["a"]}],
        }
        save({"state_dict": state, "optimizer_0": optimizer}, storage_writer=FileSystemWriter(folder))
        torch.save({"global_step": 3, "epoch": 1}, folder / "meta.pt")
        return folder

    def test_is_read_whole(self, folder: Path):
        from align.io.lightning_checkpoint import read_sharded

        assert is_checkpoint(folder)
        stored = read_stored(folder)
        assert stored["global_step"] == 3
        assert "optimizer_states" not in stored
        assert torch.equal(stored["state_dict"]["network.a"], torch.arange(6.0))
        assert torch.equal(stored["state_dict"]["network.b"], torch.ones(2, 3))
        (optimizer,) = read_sharded(folder, only_weights=False)["optimizer_states"]
        assert optimizer["state"]["network.a"]["step"].item() == 3
        assert optimizer["param_groups"] == [{"lr": 0.5, "params": ["a"]}]

    def test_that_is_not_whole_is_refused(self, folder: Path):
        data = next(folder.glob("*.distcp"))
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"step=3\.ckpt"):
            read_stored(folder)
        (folder / "meta.pt").unlink()
        with pytest.raises(ValueError, match=r"step=3\.ckpt.*meta\.pt"):
            read_stored(folder)

    def test_runs_no_code_of_a_metadata_file(self, folder: Path, tmp_path: Path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "pwned"), "w"))

        stream = io.BytesIO()
        pickle.dump(Evil(), stream)
        (folder / ".metadata").write_bytes(stream.getvalue())
        with pytest.raises(ValueError, match=r"\.metadata.*\w+\.open"):
            read_stored(folder)
        assert not (tmp_path / "pwned").exists()


def test_one_optimizer_moves_cut_and_uncut_tensors(mesh):
    """Equal to two optimizers; its parameter groups, which checkpoints store, don't change."""
    from torch.distributed.tensor import distribute_tensor

    from align.training.optimization import OptimizerConfig, build_optimizer

    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    cut = nn.Parameter(distribute_tensor(start.clone(), mesh["tensor_parallel"]))
    uncut, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = build_optimizer([cut, uncut], OptimizerConfig(lr=0.1))
    expected = torch.optim.AdamW([other], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    for n in range(3):
        for parameter in (cut, uncut, other):
            parameter.grad = None

        def closure(n=n):
            loss = ((cut.full_tensor() - n) ** 2).sum() + ((uncut - n) ** 2).sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() >= 0
        ((other - n) ** 2).sum().backward()
        expected.step()
    torch.testing.assert_close(cut.full_tensor(), other)
    torch.testing.assert_close(uncut, other)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0]
