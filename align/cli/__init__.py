"""The ``align`` command: find the verb, import what it needs, turn a user's mistake into one line."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from align.cli.errors import UsageError, one_line
from align.pipeline.recipe_error import RecipeError


class Verb(NamedTuple):
    """A verb of the command line and the function that runs it.

    Attributes:
        home: ``module:function``; the function takes the rest of the command line and returns an exit code.
        summary: one line for ``align --help``.
    """

    home: str
    summary: str


VERBS = {
    "run": Verb("align.cli.run:main", "run a recipe folder's pipeline, skipping what is up to date"),
    "recipes": Verb("align.cli.recipes:main", "list the shipped recipe folders; copy one to edit it"),
    "data": Verb("align.cli.data:main", "make a corpus from raw files: filter, deduplicate, decontaminate, mask"),
    "doctor": Verb("align.cli.doctor:main", "look for mistakes in the data and settings of a recipe before training"),
    "plan": Verb(
        "align.cli.plan:main", "parameters, FLOPs, memory, time and cost of a recipe before it runs; check a run"
    ),
    "fit": Verb("align.cli.lightning:main", "train one stage from a recipe"),
    "validate": Verb("align.cli.lightning:main", "run a recipe's validation"),
    "test": Verb("align.cli.lightning:main", "run a recipe's test"),
    "predict": Verb("align.cli.lightning:main", "run a recipe's prediction"),
    "generate": Verb("align.cli.generate:main", "sample from a model, and score the samples"),
    "play": Verb("align.cli.play:main", "play episodes of several turns between a model and an environment"),
    "chat": Verb("align.cli.chat:main", "chat with a model, or with several side by side"),
    "arena": Verb("align.cli.arena:main", "vote between blind responses on a local web page"),
    "serve": Verb("align.cli.serve:main", "serve a model over an OpenAI-compatible HTTP API"),
    "preferences": Verb(
        "align.cli.preferences:main", "sample responses, score them, write preference pairs or the best of N"
    ),
    "compare": Verb("align.cli.compare:main", "compare models on the same prompts: win rates, KL, frontier, report"),
    "eval": Verb("align.cli.evaluate:main", "measure abilities: lm-evaluation-harness's tasks, perplexity of texts"),
    "export": Verb("align.cli.export:main", "write a model for transformers, vLLM or llama.cpp, and verify it"),
    "tokenizer": Verb("align.cli.tokenizer:main", "train a byte-level BPE; encode and decode with it"),
    "sandbox": Verb("align.cli.sandbox:main", "write a task with a known reward: stories, constraints, games"),
}

_EPILOG = """
`align VERB --help` lists a verb's settings with units and defaults; `--top-k` and `--top_k` are the same flag.
`--debug` anywhere shows the traceback of a failure. Exit codes: 0 done, 1 failed, 2 wrong usage.

First steps:   align run tiny
               align generate runs/tiny/sft/model --prompt "Tell me a happy tale of a fox named Nora ..."
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``align`` command.

    Args:
        argv: the command line without the program's name; None reads ``sys.argv``.

    Returns:
        int: 0 done, 1 failed, 2 wrong usage.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        code = _run(args, debug=debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python would fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(args: list[str], *, debug: bool) -> int:
    if not args or args[0] in {"-h", "--help"}:
        print(_help())
        return 0 if args else 2
    if args[0] == "--version":
        from align import __version__

        print(__version__)
        return 0
    return _guarded(args[0], args[1:], debug=debug)


def _guarded(name: str, rest: list[str], *, debug: bool) -> int:
    """Run a verb; a user's mistake becomes one line on stderr."""
    try:
        return _verb(name)(rest) or 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print(f"align {name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # argparse, after printing its message
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = one_line(error)
        if message is None:  # a bug: the traceback helps
            if not debug:
                traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
        print(f"align {name}: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError | RecipeError) else 1


def _verb(name: str) -> Callable[[list[str]], int | None]:
    if name not in VERBS:
        from align.pipeline.recipe_error import nearest

        raise UsageError(f"no verb {name!r}{nearest(name, VERBS)}; `align --help` lists them")
    module, function = VERBS[name].home.split(":")
    run: Callable[..., int | None] = getattr(import_module(module), function)
    # The four Lightning verbs share a home, which has to know which one it is.
    return (lambda rest: run(name, rest)) if module == "align.cli.lightning" else run


def _help() -> str:
    lines = [
        "usage: align VERB [settings]",
        "",
        "From raw text to an aligned, compared and exported GPT.",
        "",
        "verbs:",
    ]
    lines += [f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines) + "\n" + _EPILOG
