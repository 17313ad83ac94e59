"""``align serve``: a model behind OpenAI's HTTP API, by llama.cpp's or vLLM's server."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from align.cli.model_path import model_directory, model_name
from align.cli.serving import GGUF, Server, ServeSettings, choose_engine, free_address
from align.cli.settings import parse_settings, setting


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Serve a model over OpenAI's HTTP API: chat completions, completions, streaming, JSON schemas, tools."""

    model: str = setting(positional=True)
    """Model directory, folder of a stage, Hugging Face directory, Hub id, or .gguf file"""
    settings: ServeSettings
    """How it is served"""


def main(args: list[str]) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        args: the command line after ``align serve``.

    Returns:
        int: 0.
    """
    options = parse_settings(ServeArguments, "serve", args)
    # SIGINT, too: a shell that starts a program in the background lets it ignore that signal.
    stops = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.default_int_handler) for number in stops]
    try:
        _serve(options.model, options.settings)
    except KeyboardInterrupt:
        return 0
    finally:
        for number, handler in zip(stops, former, strict=True):
            signal.signal(number, handler)
    return 0


def _serve(source: str, settings: ServeSettings) -> None:
    # The port before the model: a port that is taken is a common mistake, and converting takes time.
    address = free_address(settings.host, settings.port)
    model = _model(source)
    name = settings.name or (model.stem if model.suffix == GGUF else model_name(model))
    server = Server(choose_engine(model, settings), model, name, address, settings)
    try:
        _announce(f"{address.url}/v1", name, settings)
        server.wait()
    finally:
        server.stop()


def _model(source: str) -> Path:
    """The GGUF file or the model directory that a word of the command line means.

    Raises:
        FileNotFoundError: there is none.
        ValueError: neither engine can serve it; the line says why.
    """
    if source.endswith(GGUF):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path
    from align.io.directory import is_scalar
    from align.io.families import config_from, why_no_twin
    from align.io.location import read_fields
    from align.io.manifest import stage_of
    from align.tokenizer import Tokenizer

    directory = model_directory(source)
    found = read_fields(directory)
    if is_scalar(found):
        raise ValueError(f"{directory}: a reward model, which gives a score and no text: it cannot be served")
    if reason := why_no_twin(config_from(found)):
        raise ValueError(f"{directory}: neither llama.cpp nor vLLM computes this network: {reason}")
    if Tokenizer.load(directory).spec.chat_template is None:
        _warn(f"{directory}: the tokenizer has no chat template: use /v1/completions")
    elif stage_of(directory) == "pretrain":
        _warn(f"{directory} is a pretrained model that never saw a chat: use /v1/completions")
    return directory


def _announce(url: str, name: str, settings: ServeSettings) -> None:
    key = '-H "Authorization: Bearer $ALIGN_API_KEY" ' if settings.key else ""
    print(url)
    print(f"curl {url}/chat/completions {key}-H 'Content-Type: application/json' \\")
    print(f"""  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'""", flush=True)
    if settings.public and settings.key is None:
        _warn("anyone who can reach this machine can use the server; give --api_key or ALIGN_API_KEY")


def _warn(message: str) -> None:
    print(f"align serve: warning: {message}", file=sys.stderr)
