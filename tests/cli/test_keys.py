"""The messages are what jsonargparse really says (recorded); test_lightning.py drives the real parser."""

import pytest
import torch
from naming import names

from align.cli.errors import one_line
from align.cli.keys import explain
from align.pipeline.errors import nearest

_ECHO = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path '{owner}':
        {problem}
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {{'class_path': '{owner}', 'init_args': {{'gpt': {{'layers': 'abc'}}}}}}"""


@pytest.mark.parametrize(
    ("problem", "named"),
    [
        ("Option 'z_los' is not accepted", ["model.init_args.z_los", "z_loss"]),
        ("Group 'gpt' does not accept option 'layrs'", ["model.init_args.gpt.layrs", "layers"]),
        (
            "Parser key \"gpt.layers\":\n          Expected a <class 'int'>. Got value: abc",
            ["model.init_args.gpt.layers", "int", "abc"],
        ),
    ],
)
def test_nested_problems_become_one_line(problem: str, named: list[str]):
    line = explain(_ECHO.format(owner="align.algorithms.Pretrain", problem=problem))
    assert names(line, *named)
    assert "\n" not in line


def test_wrong_class_names_the_nearest():
    problem = "module 'align.algorithms' has no attribute 'Pretran'"
    message = _ECHO.format(owner="align.algorithms.Pretran", problem=problem)
    assert names(explain(message), "model.class_path", "align.algorithms", "Pretran", "Pretrain")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("Group 'trainer' does not accept option 'max_step'", ["trainer.max_step", "max_steps"]),
        ("unrecognized arguments: --trainer.max_stepss 3", ["trainer.max_stepss", "max_steps"]),
        ("Option 'checkpont.a' is not accepted", ["checkpont", "checkpoint"]),
        (
            "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: many",
            ["trainer.max_steps", "int", "many"],
        ),
    ],
)
def test_flat_problems(message: str, named: list[str]):
    line = explain(message)
    assert names(line, *named)
    assert "\n" not in line


def test_nearest_says_nothing_when_nothing_is_alike():
    assert nearest("zzz", ["layers", "width"]) == ""


def test_a_bug_is_not_shortened():
    assert one_line(KeyError("x")) is None
    assert one_line(ValueError("two\nlines")) == "two lines"


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB."),
            "CUDA out of memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        (MemoryError(), "memory"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_takes_less(error: BaseException, first: str):
    line = one_line(error)
    assert line is not None
    assert names(line, first)
    assert "\n" not in line
