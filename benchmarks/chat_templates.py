"""Ids and masks of public chat template styles against transformers, on generated conversations.

    python benchmarks/chat_templates.py [--templates FOLDER] [--chats 50] [--out FILE]

For each style, 50 conversations with system prompts, several turns, tools, calls, results, reasoning, content parts and
whitespace at the ends are rendered by align and by ``apply_chat_template``. Ids must be equal. The mask is compared
with an independent one: a regular expression of the style finds the assistant's turns in transformers' text, and the
offsets of `tokenizers` say which tokens touch them. Templates of trl with ``{% generation %}`` are compared with
``return_assistant_tokens_mask``. A chat that align refuses and transformers renders is listed with the reason.

Templates of Llama, Qwen, Gemma, Phi and DeepSeek are those that trl installs; ChatML, Mistral, Zephyr and SmolLM3 are
written here in the same style. ``--templates`` compares the ``.jinja`` files of a folder instead; their turns are those
that begin where transformers' prompts for them end, and a chat in which they don't is counted as ``mask not checked``.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import transformers
import trl
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as PeerTokenizer
from transformers import PreTrainedTokenizerFast

from align.tokenizer import Tokenizer
from align.tokenizer.jinja_template import TODAY

TRL = Path(trl.__file__).parent / "chat_templates"

CHATML = (
    "{%- for turn in messages %}{{ '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for turn in messages %}
    {%- if turn.role == 'system' %}
        {%- set ns.system = turn.content ~ '\n\n' %}
    {%- elif turn.role == 'user' %}
        {%- if tools and loop.index0 <= 1 %}
            {{- '[AVAILABLE_TOOLS]' ~ tools | tojson ~ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' ~ ns.system ~ turn.content ~ '[/INST]' }}
        {%- set ns.system = '' %}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' ~ turn.content ~ '}[/TOOL_RESULTS]' }}
    {%- elif turn.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in turn.tool_calls %}
            {%- set written = call.function | tojson %}
            {{- written[:-1] ~ ', "id": "' ~ call.id ~ '"}' ~ ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']' ~ eos_token }}
    {%- elif turn.role == 'assistant' %}
        {{- turn.content | trim ~ eos_token }}
    {%- else %}
        {{- raise_exception('unknown role ' ~ turn.role) }}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for turn in messages %}
{% if turn.role == 'assistant' %}
{{ '<|assistant|>\n' + turn.content + eos_token }}
{% else %}
{{ '<|' + turn.role + '|>\n' + turn.content + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
SMOLLM3 = """{%- set first = messages[0] if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if first else messages %}
{{- '<|im_start|>system\n## Metadata\nToday: ' ~ strftime_now('%d %B %Y') ~ '\n\n' }}
{%- if first %}{{- '## Instructions\n' ~ first.content.rstrip() ~ '\n' }}{%- endif %}
{%- if tools %}
    {{- '## Tools\n<tools>\n' }}
    {%- for tool in tools %}{{- tool | string | replace('None', 'null') ~ '\n' }}{%- endfor %}
    {{- '</tools>\n' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for turn in turns %}
    {%- set content = turn.content if turn.content is string else '' %}
    {%- if turn.role == 'assistant' %}
        {%- generation %}
            {{- '<|im_start|>assistant\n' ~ content.lstrip('\n') }}
            {%- for call in turn.tool_calls or [] %}
                {{- '<tool_call>' ~ call.function | tojson ~ '</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- elif turn.role == 'tool' %}
        {{- '<|im_start|>user\n' ~ content ~ '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ turn.role ~ '\n' ~ content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n' }}{%- endif %}
"""
CHATML_TURN = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
LLAMA_TURN = r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)"
GEMMA_TURN = r"<start_of_turn>model\n(.*?<end_of_turn>)"
DEEPSEEK_TURN = r"(?:<｜Assistant｜>|<｜tool▁outputs▁end｜>)(.*?<｜end▁of▁sentence｜>)"
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>",
)  # fmt: skip
MISTRAL_TOKENS = (
    "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)  # fmt: skip
DEEPSEEK_TOKENS = tuple(
    f"<｜{name}｜>"
    for name in (
        "begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁calls▁begin", "tool▁calls▁end",
        "tool▁call▁begin", "tool▁call▁end", "tool▁sep", "tool▁outputs▁begin", "tool▁outputs▁end", "tool▁output▁begin",
        "tool▁output▁end",
    )
)  # fmt: skip
PLAIN_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True)
class Style:
    """A chat template with the special tokens it uses."""

    name: str
    template: str
    """Jinja source"""
    special: tuple[str, ...]
    """Special tokens; the first is bos if ``bos``"""
    eos: str
    turn: str | None = None
    """Regular expression whose group is a turn of the assistant's; None: ``{% generation %}`` marks turns, or prompts
    show where they begin"""
    bos: bool = False
    features: frozenset[str] = frozenset()
    """What chats may have beyond user and assistant: system, tools, reasoning, parts, developer"""


def trl_style(name: str, file: str, special: tuple[str, ...], **settings: Any) -> Style:
    """A style whose template trl installs."""
    return Style(name, (TRL / f"{file}.jinja").read_text(encoding="utf-8"), special, **settings)


SYSTEM = frozenset({"system"})
ALL = frozenset({"system", "tools", "reasoning", "developer"})


def styles() -> list[Style]:
    """What is compared."""
    chatml = {"special": CHATML_TOKENS, "eos": "<|im_end|>"}
    llama = {"special": LLAMA_TOKENS, "eos": "<|end_of_text|>", "bos": True}
    gemma = {"special": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "eos": "<eos>", "bos": True}
    phi = {"special": ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "eos": "<|endoftext|>"}
    deepseek = {"special": DEEPSEEK_TOKENS, "eos": DEEPSEEK_TOKENS[1], "bos": True}
    tools = SYSTEM | {"tools"}
    return [
        Style("ChatML", CHATML, turn=CHATML_TURN, features=SYSTEM | {"developer"}, **chatml),
        trl_style("Llama 3", "llama3", turn=LLAMA_TURN, features=SYSTEM | {"developer"}, **llama),
        trl_style("Llama 3, trl's training variant", "llama3_training", features=SYSTEM, **llama),
        trl_style("Llama 3.1", "llama3_1", turn=LLAMA_TURN, features=tools, **llama),
        trl_style("Llama 3.2", "llama3_2", turn=LLAMA_TURN, features=tools, **llama),
        trl_style("Qwen2.5", "qwen2_5", turn=CHATML_TURN, features=tools, **chatml),
        trl_style("Qwen2.5, trl's training variant", "qwen2_5_training", features=tools, **chatml),
        trl_style("Qwen3", "qwen3", turn=CHATML_TURN, features=tools | {"reasoning"}, **chatml),
        trl_style("Qwen3, trl's training variant", "qwen3_training", features=tools | {"reasoning"}, **chatml),
        trl_style("Gemma 2", "gemma", turn=GEMMA_TURN, **gemma),
        trl_style("Gemma 2, trl's training variant", "gemma_training", **gemma),
        trl_style("Gemma 3", "gemma3", turn=GEMMA_TURN, features=SYSTEM | {"parts"}, **gemma),
        trl_style("Gemma 3, trl's training variant", "gemma3_training", features=SYSTEM | {"parts"}, **gemma),
        Style(
            "Mistral", MISTRAL, MISTRAL_TOKENS, "</s>", r"(?:\[/INST\]|\[/TOOL_RESULTS\])(.*?</s>)", True, tools
        ),
        Style("Zephyr", ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>", r"<\|assistant\|>\n(.*?</s>)", features=SYSTEM),
        Style("SmolLM3", SMOLLM3, features=tools, **chatml),
        trl_style("Phi-3", "phi3", turn=r"<\|assistant\|>\n(.*?<\|end\|>)", features=SYSTEM, **phi),
        trl_style("DeepSeek-V3", "deepseekv3", turn=DEEPSEEK_TURN, features=SYSTEM | {"think"}, **deepseek),
        trl_style("DeepSeek-R1-Distill", "deepseek_r1_distill", turn=DEEPSEEK_TURN, features=SYSTEM | {"think"},
                  **deepseek),
    ]  # fmt: skip


# Conversations.

WORDS = (
    "the weather in Paris is mild today", "2 + 2 = 4", "Größe: naïve café", "你好，世界。",
    "def f(x):\n    return x  # ok", "😀 fine", "one\n\ntwo", "don't", "a  b", "x",
    "cafe\u0301", "1234567", "It's <b>bold</b>.",
)  # fmt: skip
EDGES = ("", "", "", " ", "\n", "  ", "\n\n", "\t")
SCHEMA = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def conversation(random_: random.Random, features: frozenset[str]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """A chat that ends with the assistant, and its tools."""

    def words() -> str:
        text = " ".join(random_.choice(WORDS) for _ in range(random_.randint(1, 3)))
        return random_.choice(EDGES) + text + random_.choice(EDGES)

    def content() -> Any:
        return [{"type": "text", "text": words()}] if "parts" in features and random_.random() < 0.3 else words()

    def reply() -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content()}
        if "reasoning" in features and random_.random() < 0.5:
            message[random_.choice(["reasoning_content", "thinking"])] = words()
        elif features & {"think", "reasoning"} and random_.random() < 0.4:
            message["content"] = f"<think>\n{words().strip()}\n</think>\n\n{words().strip()}"
        return message

    messages: list[dict[str, Any]] = []
    if "system" in features and random_.random() < 0.5:
        role = "developer" if "developer" in features and random_.random() < 0.3 else "system"
        messages.append({"role": role, "content": words()})
    tools = [SCHEMA] if "tools" in features and random_.random() < 0.6 else None
    for _ in range(random_.randint(1, 3)):
        messages.append({"role": "user", "content": content()})
        if tools and random_.random() < 0.6:
            identity = "".join(random_.choices("abcdefghijk0123456789", k=9))
            call = {"name": "get_weather", "arguments": {"place": random_.choice(WORDS), "days": random_.randint(1, 9)}}
            calls = [{"id": identity, "type": "function", "function": call}]
            said = random_.choice([{}, {"content": None}, {"content": ""}])
            messages.append({"role": "assistant", "tool_calls": calls, **said})
            messages.append({"role": "tool", "tool_call_id": identity, "content": '{"degrees": 21}'})
        messages.append(reply())
    return messages, tools


# Tokenizers.


def base_tokenizer() -> PeerTokenizer:
    """A byte-level BPE with merges across spaces, line breaks and punctuation."""
    peer = PeerTokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    peer.normalizer = normalizers.NFC()
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    peer.decoder = decoders.ByteLevel()
    corpus = [f"{a}{edge}{b}\n" for a in WORDS for b in WORDS for edge in (" ", "\n", "\n\n", "")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    peer.train_from_iterator([*corpus, json.dumps(SCHEMA)] * 2, trainer)
    return peer


def load_both(style: Style, base: str, directory: Path) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """The tokenizer of a style, in align and in transformers."""
    peer = PeerTokenizer.from_str(base)
    peer.add_special_tokens(list(style.special))
    peer.add_tokens(list(PLAIN_TOKENS))
    directory.mkdir(parents=True)
    peer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(style.template, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": style.special[0] if style.bos else None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": style.eos}))
    return Tokenizer.load(directory), PreTrainedTokenizerFast.from_pretrained(directory)


# Comparison.


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return TODAY


def expected(
    style: Style, peer: PreTrainedTokenizerFast, messages: Sequence[dict[str, Any]], tools: list[Any] | None
) -> tuple[list[int], list[bool] | None]:
    """Ids of transformers, and the mask by the style's expression, ``{% generation %}`` or prompts; None: unknown."""
    if style.turn is None and re.search(r"{%-?\s*generation", style.template):
        out = peer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        return out["input_ids"], list(map(bool, out["assistant_masks"]))
    ids = peer.apply_chat_template(messages, tools=tools, return_dict=True)["input_ids"]
    text = peer.apply_chat_template(messages, tools=tools, tokenize=False)
    if style.turn is not None:
        spans = [match.span(1) for match in re.finditer(style.turn, text, re.DOTALL)]
    elif (found := prompted_spans(style, peer, text, messages, tools)) is not None:
        spans = found
    else:
        return ids, None
    out = peer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert out["input_ids"] == ids
    return ids, [any(start < b and a < end for a, b in spans) for start, end in out["offset_mapping"]]


def prompted_spans(
    style: Style, peer: PreTrainedTokenizerFast, text: str, messages: Sequence[dict[str, Any]], tools: list[Any] | None
) -> list[tuple[int, int]] | None:
    """From where the prompt for a turn ends to the first eos; None if a prompt is not the beginning of the text."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = peer.apply_chat_template(
                messages[:number], tools=tools, tokenize=False, add_generation_prompt=True
            )
            if not text.startswith(prompt) or style.eos not in text[len(prompt) :]:
                return None
            spans.append((len(prompt), text.index(style.eos, len(prompt)) + len(style.eos)))
    return spans


def compare(style: Style, ours: Tokenizer, peer: PreTrainedTokenizerFast, *, chats: int, seed: int = 0) -> Counter[str]:
    """Counts of outcomes: ``equal``, ``ids differ``, ``masks differ``, ``both refuse``, ``refused: ...``."""
    random_ = random.Random(f"{seed} {style.name}")
    outcomes: Counter[str] = Counter()
    for _ in range(chats):
        messages, tools = conversation(random_, style.features)
        try:
            with patch("transformers.utils.chat_template_utils.datetime", _Clock):
                ids, mask = expected(style, peer, messages, tools)
        except Exception:  # whatever the template raises
            ids = mask = None
        try:
            rendered = ours.render_chat(messages, tools=tools)
        except ValueError as error:
            outcomes["both refuse" if ids is None else f"refused: {error}"] += 1
            continue
        if ids is None:
            outcomes["transformers refuses"] += 1
        elif rendered.ids != ids:
            outcomes["ids differ"] += 1
        elif mask is None:
            outcomes["mask not checked"] += 1
        else:
            outcomes["equal" if rendered.mask == mask else "masks differ"] += 1
    return outcomes


def folder_styles(folder: Path) -> Iterator[Style]:
    """The templates of a folder, with what looks like a special token in them."""
    for file in sorted(folder.glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        names = re.findall(r"<[|｜][^|｜<>'\"{}]+[|｜]>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]|</s>", source)
        ends = [name for name in names if re.search(r"im_end|eot_id|end_of_turn|end▁of▁sentence|</s>|[|]end[|]", name)]
        eos = ends[0] if ends else "</s>"
        yield Style(file.stem, source, tuple(dict.fromkeys(["<s>", eos, *names])), eos, bos=True, features=ALL)


def rows(compared: Iterable[Style], chats: int) -> Iterator[tuple[str, Counter[str]]]:
    """Outcomes by style."""
    base = base_tokenizer().to_str()
    with tempfile.TemporaryDirectory() as folder:
        for number, style in enumerate(compared):
            yield style.name, compare(style, *load_both(style, base, Path(folder) / str(number)), chats=chats)


def main() -> int:
    """Print the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chats", type=int, default=50, help="conversations of each style")
    parser.add_argument("--templates", type=Path, help="folder of .jinja files to compare instead")
    options = parser.parse_args()
    compared = folder_styles(options.templates) if options.templates else styles()
    print(
        f"transformers {transformers.__version__}, trl {trl.__version__}, {options.chats} conversations of each style"
    )
    print(
        "| style | equal | mask not checked | differ | refused by both | refused by align |\n|---|---|---|---|---|---|"
    )
    failed = False
    for name, outcomes in rows(compared, options.chats):
        refused = {key: count for key, count in outcomes.items() if key.startswith("refused")}
        differ = {key: count for key, count in outcomes.items() if "differ" in key or key == "transformers refuses"}
        failed = failed or bool(differ)
        counts = [outcomes["equal"], outcomes["mask not checked"], sum(differ.values()), outcomes["both refuse"]]
        reasons = "; ".join(f"{count} {key}" for key, count in (differ | refused).items())
        print(f"| {name} | {' | '.join(map(str, counts))} | {sum(refused.values())} | {reasons}".rstrip(" |") + " |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
