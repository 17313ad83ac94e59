"""``align serve``: a model directory behind OpenAI's chat completions API."""

import os
import sys

import jsonargparse

from align.cli.errors import UsageError
from align.cli.model_path import model_directory
from align.cli.parsing import make_parser, parse

_MAX_LENGTH = 4096  # memory is taken for every row at the start; a long context need not be


def main(args: list[str]) -> int:
    """Serve until told to stop.

    Args:
        args: the command line after ``align serve``.

    Returns:
        int: 0.
    """
    options = parse(_parser(), args)
    key = _api_key(options.api_key_env)
    if options.max_body_kib < 1 or options.max_new_tokens < 1:
        raise UsageError(
            f"--max_body_kib is {options.max_body_kib} and --max_new_tokens {options.max_new_tokens}: "
            "both must be at least 1"
        )
    if not 0 <= options.port < 1 << 16:
        raise UsageError(f"--port is {options.port}; it must be between 0 (any that is free) and 65535")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"align serve needs {error.name}: pip install 'lightning-align[serve]'") from None
    _serve(options, key)
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
    from align.model import load_network
    from align.serve.app import Service
    from align.serve.engine import Engine
    from align.serve.protocol import Limits
    from align.serve.server import LOCAL, bind, serve
    from align.tokenizer import Tokenizer

    directory = model_directory(options.model)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.spec.chat_template is None:
        raise ValueError(f"{directory}: its tokenizer has no chat template, so it cannot answer chats")
    network = load_network(directory).eval()
    # Before the memory is taken: a port in use is a common mistake.
    listening = bind(options.host, options.port)
    engine = Engine(
        network, tokenizer, max_rows=options.max_concurrency, max_waiting=options.max_waiting,
        max_length=options.max_length or min(network.config.context, _MAX_LENGTH),
    )  # fmt: skip
    resolved = directory.resolve()
    name = options.name or (resolved.parent.name if resolved.name == "model" else resolved.name)
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
        print("align serve: warning: anyone who can reach this machine can use it; see --api_key_env", file=sys.stderr)
    service = Service(engine, name, limits, max_body_bytes=options.max_body_kib * 1024, api_key=key)
    serve(service, listening, grace_s=options.grace_s)
