"""Who may import whom: the arrows between the rooms of align/."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[1] / "align"
MAY_IMPORT: dict[str, set[str]] = {
    "batches": set(),
    "objectives": set(),
    "tokenizer": set(),
    "sandbox": set(),
    "execution": set(),
    "model": {"objectives"},
    "adapters": {"model"},
    "generation": {"model", "adapters", "tokenizer", "objectives"},
    "io": {"model", "adapters", "tokenizer"},
    "engines": {"model", "io", "generation", "tokenizer"},
    "environments": {"tokenizer", "sandbox"},
    "data": {"tokenizer"},
    "curate": {"data", "tokenizer"},
    "rewards": {"model", "io", "generation", "sandbox", "execution", "tokenizer"},
    "training": {"model", "adapters", "io"},
    "plan": {"objectives", "model", "adapters", "generation", "io", "training"},
    "algorithms": {
        "tokenizer",
        "objectives",
        "model",
        "adapters",
        "engines",
        "environments",
        "generation",
        "io",
        "rewards",
        "training",
        "plan",
    },  # fmt: skip
    "callbacks": {"tokenizer", "model", "adapters", "generation", "io", "rewards", "training", "plan"},
    "evaluate": {"tokenizer", "objectives", "model", "generation", "io", "rewards", "execution"},
    "arena": {"tokenizer", "generation", "io", "evaluate"},
    "compare": {"engines", "tokenizer", "objectives", "model", "generation", "io", "rewards", "evaluate"},
    "export": {"tokenizer", "model", "adapters", "io", "generation"},
    "pipeline": {"io", "training"},
}
EVERYBODY_MAY = {"batches"}
# These import nothing of align, so every room may write files atomically, hash users' code, build what users describe,
# show progress, measure their memory, explain the Hub's errors and read GGUF's metadata.
EVERYBODYS = {
    "align.io.atomic",
    "align.io.code",
    "align.io.described",
    "align.io.memory",
    "align.io.progress",
    "align.io.hub",
    "align.io.gguf.container",
}
FREE = {"cli", "__main__", "__init__"}
NEVER = {"transformers", "tokenizers", "tiktoken", "trl"}
# One reads exports as their users will, the other applies tokenizers as only their library does.
EXCEPT = {"export/verify_transformers.py": {"transformers"}, "tokenizer/library.py": {"tokenizers"}}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path):
    room = _room(path)
    imports = _imports(path)
    allowed = EXCEPT.get(path.relative_to(ROOT).as_posix(), set())
    assert not {name.split(".")[0] for name in imports} & (NEVER - allowed), "only tests compare with these"
    rooms = {name.split(".")[1] for name in imports - EVERYBODYS if name.startswith("align.")}
    if ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) in EVERYBODYS:
        assert not rooms
    if room not in FREE:
        assert rooms - {room} - EVERYBODY_MAY <= MAY_IMPORT[room]
    if room != "__main__":
        assert room in FREE or "cli" not in rooms


def test_only_rooms_and_what_data_makes_are_at_the_top():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "batches.py"}


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return trail[trail.index(module) :]
        if module not in done:
            for other in sorted(graph[module]):
                if found := visit(other, [*trail, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_no_modules_import_each_other():
    """In functions too; imports for type checkers aside."""
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        typing = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        graph[module] = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing
        }
    for module, imported in graph.items():
        graph[module] = {name for name in imported if name in graph and name != module}
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert _cycle(graph) == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("align", {"torch", "lightning", "numpy"}),
        ("align.cli", {"torch", "lightning", "jsonargparse"}),
        ("align.tokenizer", {"torch", "datasets"}),
        ("align.sandbox", {"torch", "datasets"}),
        ("align.data", {"torch", "lightning", "datasets"}),
        ("align.model.config", {"torch"}),
        ("align.generation.sampling_config", {"torch"}),
    ],
)
def test_imports_stay_light(module: str, heavy: set[str]):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


PACKAGES = ["align", *(f"align.{path.parent.name}" for path in sorted(ROOT.glob("*/__init__.py")))]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_the_objects_of_their_homes(package: str):
    """A name that is imported on first use is what stands in the module that defines it."""
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if isinstance(found, type | FunctionType):
            assert found.__module__.startswith(package), name
            assert getattr(import_module(found.__module__), found.__name__) is found, name


@pytest.mark.parametrize(
    "package", ["align", "align.compare", "align.data", "align.export", "align.model", "align.training"]
)
def test_type_checkers_see_the_names_that_are_imported_on_first_use(package: str):
    module = import_module(package)
    (block,) = (node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen.keys() == module._HOMES.keys()
    assert all(getattr(import_module(home), name) is getattr(module, name) for name, home in seen.items())
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'absent'"):
        module.absent  # noqa: B018


def test_every_lightning_module_and_data_module_is_public():
    import lightning.pytorch as pl

    for package in ("align.algorithms", "align.data", "align.callbacks"):
        module = import_module(package)
        for name in module.__all__:
            if issubclass(getattr(module, name), pl.LightningModule | pl.LightningDataModule | pl.Callback):
                assert getattr(import_module("align"), name) is getattr(module, name)


_WINDOWS = """
import builtins, importlib, os, pkgutil, signal, sys
import align

modules = ["align", *(found.name for found in pkgutil.walk_packages(align.__path__, "align."))]
modules.remove("align.__main__")
for name in modules:  # and with them all other libraries, which know Windows by other signs
    importlib.import_module(name)
for name in modules:
    sys.modules.pop(name)
absent = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty", "uvloop"}
for name in absent:
    sys.modules.pop(name, None)
for name in ("fork", "getuid", "killpg", "O_CLOEXEC", "O_DIRECTORY", "pread", "pwrite", "sched_getaffinity", "statvfs"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "pthread_sigmask"):
    delattr(signal, name)
plain = builtins.__import__

def without(name, *rest):
    if name.partition(".")[0] in absent:
        raise ImportError(f"no module named {name}")
    return plain(name, *rest)

builtins.__import__ = without
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


def test_every_module_imports_where_unix_modules_are_missing():
    done = subprocess.run([sys.executable, "-c", _WINDOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
