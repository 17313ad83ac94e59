"""``align chat``: talk to one model, or to several side by side."""

import io
import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.cli.chat_model import load_chat_models
from align.cli.device import DeviceSettings
from align.cli.errors import one_line
from align.cli.model_path import named_models
from align.cli.sampling import SamplingFlags
from align.cli.settings import parse_settings, setting
from align.pipeline.recipe_error import nearest

if TYPE_CHECKING:
    from align.cli.conversation import Conversation
    from align.generation.reply import Reply

_HELP = """\
/reset          forget the chat so far and restart from the seed
/system TEXT    set the system message; without TEXT: have none
/seed N         set the seed, from which each response derives its own
/save FILE      write the chat to a new JSONL file, one line a model, which `align fit` reads as training data
/help           this
/quit           leave, as Ctrl-D does
Ctrl-C stops a response. To send a message that begins with a slash, put a space before it."""

_TICK = 0.05  # seconds between two updates of a response


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Chat with one model, or with several, which respond side by side and each remember their own responses.

    /help lists the commands.
    """

    models: tuple[str, ...] = setting(positional=True, metavar="[NAME=]PATH")
    """Model directory, folder of a stage, Hugging Face directory, GGUF file or Hub id of each model"""
    system: str | None = None
    """System message; null: none"""
    seed: int = 0
    """Seed of the chat, hashed with the index of each response"""
    sampling: SamplingFlags = SamplingFlags()
    """How tokens are drawn"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""


def main(args: list[str]) -> int:
    """Chat until the input ends.

    Args:
        args: the command line after ``align chat``.

    Returns:
        int: 0.
    """
    options = parse_settings(ChatSettings, "chat", args)
    models = named_models(options.models)
    from align.cli.conversation import Conversation

    conversations = [
        Conversation(model, seed=options.seed, system=options.system or "")
        for model in load_chat_models(models, device=options.device.device, sampling=options.sampling)
    ]
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no UTF-8 must not end the chat
    _Chat(conversations, typed=_typed()).run()
    return 0


def _typed() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class _Chat:
    """Reads lines, executes commands, shows responses."""

    def __init__(self, conversations: "Sequence[Conversation]", *, typed: bool) -> None:
        self.conversations, self.typed = conversations, typed
        self.commands: dict[str, Callable[[str], None]] = {
            "reset": self._reset, "system": self._system, "seed": self._seed, "save": self._save, "help": self._help
        }  # fmt: skip
        self.saved: set[Path] = set()

    def run(self) -> None:
        if self.typed:
            with suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  (input() then edits lines and remembers them)
            self._say(f"{', '.join(c.name for c in self.conversations)}. /help lists the commands, Ctrl-D leaves.")
        while (line := self._read()) is not None:
            name, _, rest = line.partition(" ")
            if name in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self._obey(name[1:], rest.strip())
                elif line.strip():
                    self._respond(line.strip())
            except (ValueError, OSError) as error:
                self._say(f"error: {one_line(error)}")

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self.typed:
            line = sys.stdin.readline()
            return decodable(line.rstrip("\r\n")) if line else None
        while True:
            try:
                return decodable(input("> "))
            except EOFError:
                self._say("")
                return None
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D leaves")

    def _say(self, text: str) -> None:
        print(text, flush=True)

    # Responses.

    def _respond(self, text: str) -> None:
        replies: list[tuple[Conversation, Reply]] = []
        for conversation in self.conversations:
            try:
                reply, dropped = conversation.say(text)
            except ValueError as error:
                self._say(f"error: {error}")
                continue
            replies.append((conversation, reply))
            if dropped:
                turns = "turn" if dropped == 1 else f"{dropped} turns"
                self._say(f"[{conversation.name} forgot the oldest {turns}: the chat was too long]")
        try:
            if self.typed and len(replies) > 1:
                _show_columns(replies)
            else:
                for conversation, reply in replies:
                    self._show(f"{conversation.name}> " if len(self.conversations) > 1 else "", reply)
        except KeyboardInterrupt:
            self._say(" [stopped]")
        finally:
            for conversation, reply in replies:
                conversation.finish(reply)

    def _show(self, head: str, reply: "Reply") -> None:
        """Print a response while it is sampled."""
        sys.stdout.write(head)
        shown = 0
        while True:
            over = reply.reason is not None
            text = reply.text
            sys.stdout.write(printable(text[shown:]))
            sys.stdout.flush()
            shown = len(text)
            if over:
                break
            reply.wait(_TICK)
        self._say(_ending(reply))

    # -- commands ------------------------------------------------------------------------------------------------------

    def _obey(self, name: str, rest: str) -> None:
        if name not in self.commands:
            raise ValueError(f"no command /{name}{nearest(name, [*self.commands, 'quit'])}; /help lists them")
        self.commands[name](rest)

    def _help(self, rest: str) -> None:
        self._say(_HELP)

    def _reset(self, rest: str) -> None:
        for conversation in self.conversations:
            conversation.reset()
        self._say("[new chat]")

    def _system(self, text: str) -> None:
        for conversation in self.conversations:
            conversation.system = text
        self._say("[system message set]" if text else "[no system message]")

    def _seed(self, text: str) -> None:
        try:
            seed = int(text)
        except ValueError:
            raise ValueError(f"/seed takes a whole number, found {text!r}") from None
        if not 0 <= seed < 1 << 62:
            raise ValueError(f"/seed is {seed}; it must be between 0 and {(1 << 62) - 1}")
        for conversation in self.conversations:
            conversation.seed = seed
        self._say(f"[seed {seed}]")

    def _save(self, text: str) -> None:
        if not text:
            raise ValueError("/save takes the name of a file")
        if not any(conversation.messages for conversation in self.conversations):
            raise ValueError("nothing has been said yet")
        path = Path(text).expanduser()
        if path.exists() and path.resolve() not in self.saved:
            raise ValueError(f"{path} exists; give a name that is free")
        lines = [
            json.dumps({"model": conversation.name, "messages": conversation.transcript()}, ensure_ascii=False)
            for conversation in self.conversations
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.saved.add(path.resolve())
        self._say(f"[saved to {path}]")


def _show_columns(replies: "Sequence[tuple[Conversation, Reply]]") -> None:
    """Show several responses side by side while they are sampled."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        columns = Table(*(conversation.name for conversation, _ in replies), expand=True)
        for column in columns.columns:
            column.ratio = 1
        columns.add_row(*(Text(printable(reply.text) + _ending(reply)) for _, reply in replies))
        return columns

    with Live(table(), auto_refresh=False) as live:
        try:
            while (going := next((reply for _, reply in replies if reply.reason is None), None)) is not None:
                going.wait(_TICK)
                live.update(table(), refresh=True)
        finally:
            # What is taller than the terminal cannot be drawn again and again, but once it can.
            live.vertical_overflow = "visible"
            live.update(table(), refresh=True)


def _ending(reply: "Reply") -> str:
    return {"length": " ...", "failed": f"[failed: {reply.error}]"}.get(reply.reason or "", "")


def decodable(line: str) -> str:
    """A line that was read, with U+FFFD for the bytes that are not UTF-8."""
    return line.encode(errors="surrogateescape").decode(errors="replace")


def printable(text: str) -> str:
    """The text without characters that steer a terminal, which a model may well write."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) != "Cc" else "\N{REPLACEMENT CHARACTER}" for char in text
    )
