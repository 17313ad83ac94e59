"""The code of users' classes and functions: what its hash depends on, and which modules a recipe names."""

import functools
import sys
from importlib import import_module

import pytest

from align.io.code import code_hash, modules_named_in
from align.objectives.preference import DPO

OWN = """from based import Base
def length(prompts, responses):
    return []
class Own(Base):
    def __call__(self, *args):
        return 1
"""


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """``hashes(base, own)``: of function, partial, class and instance of a module that imports a base class."""
    monkeypatch.syspath_prepend(tmp_path)

    def found(base: str, own: str) -> list[str | None]:
        (tmp_path / "based.py").write_text(f"class Base:\n    factor = 1\n{base}")
        (tmp_path / "owned.py").write_text(OWN + own)
        module = vars(import_module("owned"))
        parts = (module["length"], functools.partial(module["length"], []), module["Own"], module["Own"]())
        result = [code_hash(part) for part in parts]
        del sys.modules["owned"], sys.modules["based"]
        return result

    return found


def test_code_that_was_edited_has_another_hash(hashes):
    function, partial, kind, instance = hashes("", "")
    assert None not in (function, kind)
    assert (partial, instance) == (function, kind)
    edited = hashes("", "# edited\n")
    assert set(edited).isdisjoint({function, kind})
    of_base = hashes("# edited\n", "")
    assert of_base[:2] == [function, partial]
    assert of_base[2] not in (kind, edited[2])
    assert hashes("", "") == [function, partial, kind, instance]


@pytest.mark.parametrize("definition", [DPO, DPO(), len, functools.partial(print, 1), dict])
def test_code_of_libraries_is_not_hashed(definition):
    assert code_hash(definition) is None


def test_modules_that_a_recipe_names(tmp_path, monkeypatch):
    """A function, a class in a package and a package; no module of another folder and no plain key."""
    for name in ("mine.py", "pack/__init__.py", "pack/deep.py", "other/mine2.py", "model.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    text = (
        "model: {reward: mine:score, loss: {class_path: pack.deep.Own}, gold: 'pack:f'}\n# other/mine2.py, align.data.X"
    )
    assert [str(file) for file in modules_named_in(text)] == ["mine.py", "pack/__init__.py", "pack/deep.py"]
