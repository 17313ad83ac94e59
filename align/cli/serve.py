"""``align serve``: a model directory behind OpenAI's chat completions API."""

import os
import sys
from functools import partial

import jsonargparse

from align.cli.chat_model import load_chat_model
from align.cli.device import add_device_argument
from align.cli.errors import UsageError
from align.cli.model_path import model_directory, model_name
from align.cli.parsing import make_parser, parse

_MAX_LENGTH = 4096  # memory is taken for every row at the start; a long context need not be


def main(args: list[str]) -> int:
    """Serve until told to stop.

    Args:
        args: the command line after ``align serve``.

    Returns:
        int: 0; 1 if the engine has failed.
    """
    options = parse(_parser(), args)
    key = _api_key(options.api_key_env)
    for name in ("max_body_kib", "max_new_tokens", "default_new_tokens", "grace_s"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if not 0 <= options.port < 1 << 16:
        raise UsageError(f"--port is {options.port}; it must be between 0 (any that is free) and 65535")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"align serve needs {error.name}: pip install 'lightning-align[serve]'") from None
    from align.serve.requests import EngineFailed

    try:
        _serve(options, key)
    except EngineFailed as error:
        print(f"align serve: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser(
        "serve", "Answer OpenAI-compatible chat completions: POST /v1/chat/completions, GET /v1/models, GET /health."
    )
    parser.add_argument("model", help="model directory, a stage's folder, Hugging Face directory or Hub id")
    parser.add_argument("--name", help="the model's name in requests (default: its folder's, model/ left out)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one of this machine")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any that is free")
    parser.add_argument(
        "--api_key_env", help="environment variable with the key that clients must send (default: no key)"
    )
    parser.add_argument("--max_concurrency", type=int, default=32, help="requests answered at once; each takes memory")
    parser.add_argument(
        "--max_waiting", type=int, default=64, help="requests that may wait for their turn; more get 429"
    )
    parser.add_argument(
        "--max_length", type=int,
        help=f"longest prompt and answer together, tokens (default: the model's context, at most {_MAX_LENGTH})",
    )  # fmt: skip
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="longest answer, tokens")
    parser.add_argument(
        "--default_new_tokens", type=int, default=256, help="longest answer where a request does not say, tokens"
    )
    parser.add_argument("--max_body_kib", type=int, default=1024, help="largest request, KiB; a larger one gets 413")
    add_device_argument(parser)
    parser.add_argument("--grace_s", type=int, default=30, help="time that answers under way get at the end, seconds")
    return parser


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"--api_key_env is {variable}, but this environment variable is not set or empty")
    return key


def _serve(options: jsonargparse.Namespace, key: str | None) -> None:
    from align.io.location import read_config
    from align.serve.app import Service
    from align.serve.process import EngineProcess
    from align.serve.protocol import Limits
    from align.serve.server import LOCAL, bind, serve

    directory = model_directory(options.model)
    length = options.max_length
    if length is None:
        length = min(read_config(directory).context, _MAX_LENGTH)
    # The port before the model: one that is taken is a common mistake.
    with (
        bind(options.host, options.port) as listening,
        EngineProcess(
            partial(load_chat_model, directory, device=options.device), max_rows=options.max_concurrency,
            max_length=length, max_waiting=options.max_waiting,
        ) as engine,
    ):  # fmt: skip
        name = options.name or model_name(directory)
        limits = Limits(
            max_new_tokens=min(options.max_new_tokens, engine.max_length),
            default_new_tokens=min(options.default_new_tokens, options.max_new_tokens),
        )
        host, port = listening.getsockname()[:2]
        print(
            f"{name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1: {engine.max_rows} requests at once, "
            f"{engine.max_length} tokens each ({engine.cache_bytes / 2**20:.0f} MiB for keys and values)",
            flush=True,
        )
        if options.host not in LOCAL and key is None:
            print(
                "align serve: warning: anyone who can reach this machine can use it; see --api_key_env", file=sys.stderr
            )
        service = Service(engine, name, limits, max_body_bytes=options.max_body_kib * 1024, api_key=key)
        serve(service, listening, grace_s=options.grace_s)
