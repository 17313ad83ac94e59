"""Mistakes of a recipe in one line, with the full key, the reason and the nearest valid name; and nulls among flags.

jsonargparse reports a mistake precisely but on many lines: one level of indentation per level of the recipe, every
alternative type, and the whole configuration echoed.
"""

import argparse
import dataclasses
import inspect
import itertools
import json
import os
import re
import typing
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import jsonargparse
import yaml

from align.cli.errors import UsageError
from align.cli.signatures import admits_null, classes_in, settings_of
from align.pipeline.recipe_error import nearest

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
_OTHER_KINDS = ("Not a valid subclass of", "Subclass types expect", "a class path (str)", "a dict with") + (
    "Import path",
    "Expected a path but",
)
"""How jsonargparse begins its lines on the other classes that a setting could have had"""
_ALIASES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "learning_rate": "lr",
    "model_name_or_path": "init_from",
    "max_length": "context",
    "max_seq_length": "context",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "max_grad_norm": "gradient_clip_val",
    "num_train_epochs": "max_epochs",
}
"""Names of settings in peft, transformers and TRL -> ours"""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_TOP_KEYS = ("run", "seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path") + (
    "checkpoint",
    "health",
    "model_directory",
    "samples",
    "throughput",
    "baseline",
    "average",
    "doctor",
)


def explain(message: str) -> str:
    """One line for a mistake that jsonargparse reports.

    Args:
        message: of the error that it raised.

    Returns:
        str: ``key: reason; did you mean 'x'?``, naming the key in full.
    """
    key, owner, reasons = "", None, []
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        if found := re.match(r"Parser key \"([^\"]+)\":", line):
            key = f"{key}.{found[1]}" if key and key != found[1] else found[1]
            line = line[found.end() :].strip()
        if found := re.match(r"Problem with given class_path '([^']+)':", line):
            owner = found[1]
            key = key if dataclasses.is_dataclass(_load(owner)) else f"{key}.init_args"
            line = line[found.end() :].strip()
        if line and not line.startswith(_NOISE):
            reasons.append(line)
    reasons = [reason for reason in reasons if not reason.startswith(_OTHER_KINDS)] or reasons
    if value := re.search(r"^ *Given value: (\S+)$", message, re.MULTILINE):
        reasons.append(f"Got value: {value[1]}")
    reason = "; ".join(dict.fromkeys(reasons)) or " ".join(message.split())
    return _unknown_key(key, owner, reason) or _unknown_class(key, owner, reason) or _wrong_value(key, reason)


def keep_nulls(args: list[str]) -> list[str]:
    """Rewrite flags below ``init_args`` whose value is null, or has a null in it, as inline recipes.

    jsonargparse parses such a value, formats the result with Python, and hands that text to the parser of the class:
    null arrives as the word None, the name of a reward or no number. In a recipe, inline or in a file, null stays null.

    Args:
        args: the command line after the verb.

    Returns:
        list[str]: the command line with ``--config={"model": {"init_args": ...}}`` in place of such flags.
    """
    kept: list[str] = []
    words = iter(args)
    for word in words:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or ".init_args." not in flag or flag.endswith("+"):
            kept.append(word)
            continue
        rest = [] if equals else list(itertools.islice(words, 1))
        text = value if equals else "".join(rest)
        found = _as_yaml(text) if equals or rest else text
        if _has_null(found):
            for part in reversed(flag.removeprefix("--").split(".")):
                found = {part: found}
            kept.append(f"--config={json.dumps(found)}")
        else:
            kept += [word, *rest]
    return kept


def check_nulls(config: Mapping[str, Any], parser: Any) -> None:
    """Reject null for a setting that is not optional: it is left out to get its default.

    jsonargparse accepts null there from a recipe, and the class would fail later without naming the setting.

    Args:
        config: the parsed settings of a run.
        parser: that parsed them.

    Raises:
        UsageError: a setting is null and must not be.
    """
    for action in parser._actions:
        annotation, names = getattr(action, "_typehint", None), action.dest.split(".")
        if len(names) == 1 or annotation is None or action.default in (None, argparse.SUPPRESS):
            continue
        for group in (".".join(names[:end]) for end in range(1, len(names))):
            if config.get(group, action) is None:
                raise UsageError(f"{group} is null, but it is a group of settings; leave it out for the defaults")
        if config.get(action.dest, action) is None:
            _refuse_null(action.dest, annotation)
    for group in ("model", "data"):
        _check_class(group, config[group])


def _check_class(key: str, spec: Any) -> None:
    """Check the settings of a ``class_path``."""
    if (kind := _load(spec["class_path"])) is not None:
        _check_group(f"{key}.init_args", kind, spec.get("init_args") or {})


def _check_group(prefix: str, kind: type, values: Any) -> None:
    """Check settings against the constructor that they are for."""
    for name, parameter in settings_of(kind).items():
        key, value = f"{prefix}.{name}", values.get(name, parameter)
        groups = [each for each in classes_in(parameter.annotation) if dataclasses.is_dataclass(each)]
        if value is None and parameter.default is not None:
            _refuse_null(key, parameter.annotation)
        elif isinstance(value, Mapping | jsonargparse.Namespace) and "class_path" in value:
            _check_class(key, value)
        elif isinstance(value, Mapping | jsonargparse.Namespace) and groups:
            _check_group(key, groups[0], value)


def _refuse_null(key: str, annotation: Any) -> None:
    """Raise unless null is a value of the annotation."""
    if admits_null(annotation):
        return
    kinds = classes_in(annotation)
    names = " or ".join(kind.__name__ for kind in kinds) or str(annotation).removeprefix("typing.")
    if any(inspect.isabstract(kind) for kind in kinds):
        raise UsageError(f"{key} is null, but it must be a class of kind {names}; leave it out for the default")
    if any(dataclasses.is_dataclass(kind) for kind in kinds):
        raise UsageError(
            f"{key} is null, but it is a group of settings ({names}); leave it out for the defaults, or change one of "
            "its settings"
        )
    raise UsageError(f"{key} is null, but it must be {names}; leave it out for the default")


def key_of(kind: type, config: Any, prefix: str = "") -> str | None:
    """The key of the setting whose ``class_path`` is a class.

    Args:
        kind: the class.
        config: mappings and lists of settings.
        prefix: key of ``config``.

    Returns:
        str: the first such key; None if no setting is of this class.
    """
    if isinstance(config, Mapping):
        if config.get("class_path") == f"{kind.__module__}.{kind.__qualname__}":
            return prefix
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list):
        items = enumerate(config)
    else:
        return None
    found = (key_of(kind, value, f"{prefix}.{name}" if prefix else str(name)) for name, value in items)
    return next((key for key in found if key is not None), None)


def _as_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError:
        return text


def _has_null(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(_has_null, parts))


def _unknown_key(key: str, owner: str | None, reason: str) -> str | None:
    """The line for a key that does not exist, if that is the reason."""
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", reason):
        group, wrong = found[1], found[2]
    elif found := re.search(r"Option '([^']+)' is not accepted", reason):
        *groups, wrong = found[1].split(".")
        group = ".".join(groups)
        if group and not owner and groups[0] not in _TOP_KEYS:
            group, wrong = "", groups[0]
    elif found := re.search(r"nrecognized arguments: --([\w.]+)", reason):
        *groups, wrong = found[1].split(".")
        group = ".".join(groups)
    else:
        return None
    names = _names(owner, group)
    full = ".".join(part for part in (key, group, wrong) if part)
    hint = (
        _under_another_name(wrong, owner, group)
        or nearest(wrong, names)
        or (f"; valid keys: {', '.join(sorted(names))}" if 0 < len(names) <= 12 else "")
    )
    return f"{full}: no such key{hint}"


def _unknown_class(key: str, owner: str | None, reason: str) -> str | None:
    """The line for a class name that stands for no subclass of what the setting takes, if that is the reason.

    jsonargparse resolves a name without a dot among the imported subclasses of the annotated class.
    """
    found = re.search(r"Expected a dot import path string: (\w+)", reason)
    if found is None or owner is None:
        return None
    *groups, name = key.rpartition("init_args.")[2].split(".")
    annotation = _within(_parameters(_load(owner)), groups).get(name)
    kinds = [kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type)]
    names = sorted(kind.__name__ for base in kinds for kind in _subclasses(base) if not inspect.isabstract(kind))
    if not names:
        return None
    return (
        f"{key}: no class {found[1]!r}{nearest(found[1], names)}; one of {', '.join(names)}, or "
        f"MODULE.{found[1]} for a class of your own"
    )


def _subclasses(base: type) -> set[type]:
    direct: set[type] = set(type.__subclasses__(base))
    return direct.union(*(_subclasses(kind) for kind in direct))


def _wrong_value(key: str, reason: str) -> str:
    """The line for a value of the wrong type, or out of its set."""
    if re.search("Unable to load config ['\"]null", reason):
        return f"{key} is null, but it is a group of settings; leave it out for the defaults, or change one of them"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", reason):
        key = f"{key.removesuffix('.init_args')}.class_path"
        return f"{key}: {reason}{nearest(found[2], _exports(found[1]))}"
    if "No module named" in reason:
        key = key.removesuffix(".init_args")
        reason += f"; modules of your own are searched for in the directory in which align starts, {os.getcwd()}"
    if value := re.search(r"Got value: (\S+)", reason):
        reason += nearest(value[1], re.findall(r"'([\w-]+)'", reason[: value.start()]))
    return f"{key}: {reason}" if key else reason


def _under_another_name(wrong: str, owner: str | None, group: str) -> str:
    """A hint at the key that another library calls so, or that is in another group; empty if there is none."""
    name = _ALIASES.get(wrong, wrong)
    if owner and (path := _path_to(name, _within(_parameters(_load(owner)), group.split(".") if group else []))):
        return f"; did you mean {path!r}?"
    return f"; did you mean 'trainer.{name}'?" if owner and name in _names(None, "trainer") else ""


def _path_to(name: str, parameters: dict[str, Any]) -> str | None:
    """The key of a setting among parameters and the groups below them."""
    if name in parameters:
        return name
    for part, annotation in parameters.items():
        if (kind := _dataclass_of(annotation)) is not None and (below := _path_to(name, _parameters(kind))):
            return f"{part}.{below}"
    return None


def _names(owner: str | None, group: str) -> list[str]:
    """Names that a class, or the dataclass of one of its parameters, accepts."""
    if owner:
        parameters = _parameters(_load(owner))
    elif group.split(".")[0] == "trainer":
        from lightning.pytorch import Trainer

        return list(_parameters(Trainer))
    else:
        return [] if group else list(_TOP_KEYS)
    return list(_within(parameters, group.split(".") if group else []))


def _within(parameters: dict[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """The parameters of the dataclass that nested names lead to."""
    for group in groups:
        parameters = _parameters(_dataclass_of(parameters.get(group)))
    return parameters


def _parameters(owner: Any) -> dict[str, Any]:
    """Name -> annotation of what a constructor takes; of what it passes on to its base's with ``**kwargs`` too."""
    if owner is None:
        return {}
    found: dict[str, Any] = {}
    for kind in owner.__mro__ if isinstance(owner, type) else (owner,):
        parameters = inspect.signature(kind).parameters.values()
        named = [parameter for parameter in parameters if parameter.kind not in _VARIADIC]
        found = {parameter.name: parameter.annotation for parameter in named} | found
        if all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _dataclass_of(annotation: Any) -> Any:
    """The dataclass in an annotation such as ``GPTConfig | None``."""
    candidates: Iterable[Any] = [annotation, *typing.get_args(annotation)]
    return next((candidate for candidate in candidates if dataclasses.is_dataclass(candidate)), None)


def _load(path: str) -> Any:
    """The object at a dotted path, None if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _exports(module: str) -> list[str]:
    return list(getattr(import_module(module), "__all__", dir(import_module(module))))
