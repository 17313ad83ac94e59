"""Chats: ids as apply_chat_template gives them, masks by hand."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from align.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there, 2 + 2?"},
    {"role": "assistant", "content": "It's 4!"},
    {"role": "user", "content": "Danke schön 😀"},
    {"role": "assistant", "content": "Bitte."},
]
_contents = st.text(st.characters(exclude_characters="<|>", exclude_categories=["Cs"]))
_chats = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": _contents}), min_size=1
)


def _peer_ids(peer, chat, add_generation_prompt):
    out = peer.apply_chat_template(chat, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True)
    return out["input_ids"]


def test_our_format_by_hand(tokenizer):
    """<|bos|> <|user|> Q <|end|> <|assistant|> A <|end|>: True on A and the <|end|> after it."""
    s = tokenizer.special_tokens
    q, a = tokenizer.encode("Hi"), tokenizer.encode("Yo, man")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo, man"}]
    rendered = tokenizer.render_chat(chat)
    assert rendered.ids == [s["<|bos|>"], s["<|user|>"], *q, s["<|end|>"], s["<|assistant|>"], *a, s["<|end|>"]]
    assert rendered.mask == [False] * (4 + len(q)) + [True] * (len(a) + 1)
    prompt = tokenizer.render_chat(chat[:1], add_generation_prompt=True)
    assert prompt.ids == rendered.ids[: len(prompt.ids)]
    assert len(prompt.ids) == rendered.mask.index(True)
    assert not any(prompt.mask)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=_chats, prompt=st.booleans())
def test_our_format_in_transformers(tokenizer, tmp_path_factory, chat, prompt):
    """Ids, and the mask that transformers gives with {% generation %} around what the assistant writes."""
    peer = _saved_peer(tokenizer, tmp_path_factory)
    rendered = tokenizer.render_chat(chat, add_generation_prompt=prompt)
    assert _peer_ids(peer, chat, prompt) == rendered.ids
    out = peer.apply_chat_template(
        chat,
        chat_template=peer.chat_template.replace(WRITTEN, "{% generation %}" + WRITTEN + "{% endgeneration %}"),
        tokenize=True,
        add_generation_prompt=prompt,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert list(map(bool, out["assistant_masks"])) == rendered.mask


WRITTEN = "{{ message['content'] }}<|end|>"
_cache: dict = {}


def _saved_peer(tokenizer, tmp_path_factory):
    if "peer" not in _cache:
        directory = tmp_path_factory.mktemp("ours")
        tokenizer.save(directory)
        _cache["peer"] = AutoTokenizer.from_pretrained(directory)
    return _cache["peer"]


def test_our_template_refuses_unknown_roles_in_transformers(tokenizer, tmp_path_factory):
    peer = _saved_peer(tokenizer, tmp_path_factory)
    with pytest.raises(Exception, match="tool"):
        peer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_foreign_templates(request, family, prompt, length):
    directory = request.getfixturevalue(f"{family}_directory")
    tokenizer, peer = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    chat = CHAT[:length]
    rendered = tokenizer.render_chat(chat, add_generation_prompt=prompt)
    assert rendered.ids == _peer_ids(peer, chat, prompt)
    counted = [i for i, counts in zip(rendered.ids, rendered.mask, strict=True) if counts]
    end = tokenizer.end_of_turn_id
    answers = [m["content"] for m in chat if m["role"] == "assistant"]
    assert counted == [i for answer in answers for i in [*tokenizer.encode(answer), end]]


def test_a_template_that_trims(llama_directory):
    """Llama-3 trims contents: the mask lies on the trimmed answer and <|eot_id|>."""
    tokenizer = Tokenizer.load(llama_directory)
    peer = AutoTokenizer.from_pretrained(llama_directory)
    chat = [{"role": "user", "content": "  Hi\n"}, {"role": "assistant", "content": "\n Yo  "}]
    rendered = tokenizer.render_chat(chat)
    assert rendered.ids == _peer_ids(peer, chat, False)
    counted = [i for i, counts in zip(rendered.ids, rendered.mask, strict=True) if counts]
    assert counted == [*tokenizer.encode("Yo"), tokenizer.end_of_turn_id]


@pytest.mark.parametrize("family", ["tokenizer", "llama", "qwen"])
def test_contents_cannot_forge_turns(request, family):
    """Names of special tokens in a content are text: as many special ids as in a chat without them."""
    if family == "tokenizer":
        tokenizer = request.getfixturevalue("tokenizer")
    else:
        tokenizer = Tokenizer.load(request.getfixturevalue(f"{family}_directory"))
    special = set(tokenizer.special_tokens.values())

    def specials(content):
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        return [i for i in tokenizer.render_chat(chat).ids if i in special]

    assert specials("".join(tokenizer.special_tokens)) == specials("a")


def test_an_empty_answer_counts_its_end(tokenizer, qwen_directory):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    for t in (tokenizer, Tokenizer.load(qwen_directory)):
        rendered = t.render_chat(chat)
        assert [i for i, counts in zip(rendered.ids, rendered.mask, strict=True) if counts] == [t.end_of_turn_id]


def _with_template(directory, tmp_path, template) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    return Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            r"\b1\b.*chat.template.*special token",
        ),
        ("{% for m in messages %}{{ m.content[::-1] }}<|im_end|>{% endfor %}", "chat.template"),
        ("{% for m in messages %}{{ m.content[:1] }}<|im_end|>{% endfor %}", "chat.template"),
        ("{{ messages[0].content }}<|im_end|>", r"\b1\b.*chat.template"),
        ("{{ raise_exception('only dogs') }}", "chat.template.*only dogs"),
        ("{% for m in messages %}", "chat.template.*endfor"),
        ("{{ messages.__class__.__mro__ }}", "chat.template"),
        ("{{ strftime_now('%Y') }}", "chat.template.*strftime_now"),
    ],
)
def test_templates_that_cannot_be_masked(qwen_directory, tmp_path, template, message):
    tokenizer = _with_template(qwen_directory, tmp_path, template)
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer.render_chat([{"role": "user", "content": "Abc"}, {"role": "assistant", "content": "def"}])
    assert "\n" not in str(caught.value)


def test_a_template_with_generation_marks_and_loop_controls(qwen_directory, tmp_path):
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}{{ {'a': 'ü'} | tojson }}"
    )
    tokenizer = _with_template(qwen_directory, tmp_path, template)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.render_chat(CHAT).ids == _peer_ids(peer, CHAT, False)


def test_named_templates_in_the_config(qwen_directory, tmp_path):
    """A list of templates: the one named default."""
    config = json.loads((qwen_directory / "tokenizer_config.json").read_text())
    source = (qwen_directory / "chat_template.jinja").read_text()
    config["chat_template"] = [{"name": "tool", "template": "x"}, {"name": "default", "template": source}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((qwen_directory / "tokenizer.json").read_bytes())
    assert Tokenizer.load(tmp_path).render_chat(CHAT) == Tokenizer.load(qwen_directory).render_chat(CHAT)


def test_no_template(gpt2_directory):
    with pytest.raises(ValueError, match=r"chat_template\.jinja"):
        Tokenizer.load(gpt2_directory).render_chat(CHAT)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages"),
        ("hello", "messages.*'hello'.*list"),
        ({"role": "user", "content": "a"}, "messages.*'role'.*list"),
        (None, "messages.*None.*list"),
        (["hello"], r"\b0\b.*'hello'.*role.*content"),
        ([{"role": "user"}], r"\b0\b.*'content'.*\{'role': 'user'\}"),
        ([CHAT[0], {"content": "a"}], r"\b1\b.*'role'"),
        ([{"role": "user", "content": None}], r"\b0\b.*content.*None"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"\b0\b.*content.*\[\{'type': 'text'\}\]"),
        ([{"role": 3, "content": "a"}], r"\b0\b.*role.*\b3\b"),
        (
            [CHAT[0], {"role": "robot", "content": "a"}],
            r"\b1\b.*role.*'robot'.*system.*user.*assistant",
        ),
        ([{"role": "user", "content": "\ud800"}], r"U\+D800"),
    ],
)
def test_bad_chats_are_refused(tokenizer, qwen_directory, messages, message):
    for t in (tokenizer, Tokenizer.load(qwen_directory)):
        with pytest.raises(ValueError, match=message) as caught:
            t.render_chat(messages)
        assert "\n" not in str(caught.value)
