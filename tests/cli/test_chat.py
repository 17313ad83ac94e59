"""``align chat`` and streaming ``align generate``, driven through a pipe."""

import io
import json
import shutil
import subprocess
import sys

import pytest
from naming import error_line, names

from align.cli import main
from align.cli.chat import printable
from align.cli.conversation import Conversation
from align.generation.generate import generate
from align.generation.reply import ChatModel, Reply
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network, save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer

CONFIG = GPTConfig(
    vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=96, init_std=0.3, embedding_std=0.5
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two chat models, and what is none: a text model, data, a foreign network."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    for seed, stage in enumerate(("dpo", "ppo", "plain")):
        network = GPT(CONFIG)
        network.initialise(seed)
        model = folder / stage / "model"
        model.mkdir(parents=True)
        tokenizer.save(model)
        ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
        save_network(network, model, **ids)
    settings = folder / "plain" / "model" / "tokenizer_config.json"
    fields = json.loads(settings.read_text())
    del fields["chat_template"]
    settings.write_text(json.dumps(fields))
    (folder / "data").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    tokenizer.save(folder / "foreign")
    return folder


@pytest.fixture
def chat(run, monkeypatch, capsys):
    """Chat with models of the run; returns the exit code, the lines shown and those on stderr."""

    def talk(lines, *models, **settings):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        code = main(["chat", *(str(run / model) if "=" not in model else model for model in models), *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return talk


def answer(run, stage, messages, *, seed, new, turn=0, **sampling):
    """What generate answers in this turn of the chat."""
    directory = run / stage / "model"
    tokenizer = Tokenizer.load(directory)
    prompt = tokenizer.render_chat(messages, add_generation_prompt=True).ids
    samples = generate(
        load_network(directory),
        [prompt],
        SamplingConfig(max_new_tokens=new, **sampling),
        seeds=[response_seed(seed, turn, 0)],
        stop_ids=tokenizer.stop_ids,
    )
    return tokenizer.decode(samples.ids[0].tolist())


def user(content):
    return {"role": "user", "content": content}


def test_turns_are_remembered_and_saved(run, chat, tmp_path):
    file = tmp_path / "chat.jsonl"
    code, _, err = chat(["a", "b", f"/save {file}"], "dpo", seed=3, max_new_tokens=12, system="s")
    assert (code, err) == (0, "")
    saved = json.loads(file.read_text())
    first = answer(run, "dpo", [{"role": "system", "content": "s"}, user("a")], seed=3, new=12)
    messages = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": first}, user("b")]
    second = answer(run, "dpo", messages, seed=3, new=12, turn=1)
    assert saved == {"model": "dpo", "messages": [*messages, {"role": "assistant", "content": second}]}


def test_models_answer_side_by_side_each_with_its_own_history(run, chat, tmp_path):
    file = tmp_path / "chat.jsonl"
    code, lines, _ = chat(["a", f"/save {file}"], "dpo", f"p={run / 'ppo' / 'model'}", max_new_tokens=8)
    assert code == 0
    saved = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in saved] == ["dpo", "p"]
    for row, stage in zip(saved, ("dpo", "ppo"), strict=True):
        assert row["messages"][1]["content"] == answer(run, stage, [user("a")], seed=0, new=8)
    shown = "\n".join(lines)
    assert shown.startswith("dpo> ")
    assert "\np> " in shown


def test_models_sample_with_their_own_defaults_and_flags_override_them(run, chat, tmp_path):
    for name, defaults in (("cold", {"temperature": 0.3, "top_k": 4}), ("greedy", {"temperature": 0.0})):
        shutil.copytree(run / "dpo/model", tmp_path / name)
        (tmp_path / name / "generation_config.json").write_text(json.dumps(defaults))
    words = [f"{name}={tmp_path / name}" for name in ("cold", "greedy")]
    expected = {
        (): [{"temperature": 0.3, "top_k": 4}, {"temperature": 0.0}],
        (("temperature", 1.0),): [{"top_k": 4}, {}],
    }
    for number, (flags, each) in enumerate(expected.items()):
        file = tmp_path / f"{number}.jsonl"
        code, _, err = chat(["a", f"/save {file}"], *words, seed=5, max_new_tokens=12, **dict(flags))
        assert code == 0
        found = [json.loads(line)["messages"][1]["content"] for line in file.read_text().splitlines()]
        assert found == [answer(run, "dpo", [user("a")], seed=5, new=12, **sampling) for sampling in each]
        assert names(err, "cold", "top_k", "generation_config.json")


def test_a_directory_that_transformers_wrote(run, chat, tmp_path, capsys):
    """Another chat template, in Jinja, of the same tokens without the one that begins a text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(run / "dpo" / "model").save_pretrained(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(run / "dpo" / "model")
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    code, _, err = chat(["a", f"/save {tmp_path / 'chat.jsonl'}"], f"x={tmp_path / 'theirs'}", max_new_tokens=9)
    assert (code, err) == (0, "")
    ours = Tokenizer.load(run / "dpo" / "model")
    prompt = ours.render_chat([user("a")], add_generation_prompt=True).ids[1:]
    samples = generate(
        load_network(run / "dpo" / "model"),
        [prompt],
        SamplingConfig(max_new_tokens=9),
        seeds=[response_seed(0, 0, 0)],
        stop_ids=ours.stop_ids,
    )
    saved = json.loads((tmp_path / "chat.jsonl").read_text())
    assert saved["messages"][1]["content"] == ours.decode(samples.ids[0].tolist())


def test_columns_on_a_terminal(run, chat, monkeypatch):
    """Input that is typed: answers in columns under the models' names."""
    lines = iter(["a", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("align.cli.chat._typed", lambda: True)
    _, shown, _ = chat([], "dpo", "ppo", max_new_tokens=8)
    head = next(line for line in shown if "dpo" in line and "ppo" in line and "/help" not in line)
    assert head.index("dpo") < head.index("ppo")


def test_reset_and_seed_repeat_an_answer(chat):
    _, lines, _ = chat(["a", "/reset", "a", "/seed 7", "/reset", "a"], "dpo", max_new_tokens=12, top_k=20)
    reset, seed, again = (number for number, line in enumerate(lines) if line.startswith("["))
    assert names(lines[seed], "seed", 7)
    assert lines[:reset] == lines[reset + 1 : seed] != lines[again + 1 :]


def test_commands_that_are_wrong_go_on(chat, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    said = ["/rest", "/seed x", "/seed -1", "/save", "/save x", "a", f"/save {taken}", f"/save {tmp_path / 'no' / 'x'}"]
    code, lines, _ = chat([*said, "/help", "/system", "/system be kind"], "dpo", max_new_tokens=1)
    assert code == 0
    errors = [line for line in lines if line.startswith("error: ")]
    named = [("/rest", "reset", "/help"), ("/seed", "x"), ("/seed", -1), ("/save",), (), (taken,)]
    for line, tokens in zip(errors, [*named, (tmp_path / "no" / "x",)], strict=True):
        assert names(line, *tokens)
    assert names("\n".join(lines), "Ctrl-C")
    without, with_one = (line for line in lines if line.startswith("["))
    assert without != with_one
    assert taken.read_text() == "mine"


def test_the_oldest_turns_go_when_the_chat_is_too_long(chat, tmp_path):
    """Context 96, a quarter of which is for the answer: one message of 20 and its answer of 24 fit beside another."""
    file = tmp_path / "chat.jsonl"
    _, lines, _ = chat(["a" * 20, "b" * 20, "c" * 20, "d" * 80, f"/save {file}"], "dpo", max_new_tokens=24)
    shown = "\n".join(lines)
    assert "[dpo " in shown
    assert names(shown, "error: dpo", 84, 96)
    messages = json.loads(file.read_text())["messages"]
    assert messages[-2] == user("c" * 20)
    assert messages[0]["role"] == "user"


def test_ctrl_c_stops_the_answer_not_the_program(chat, monkeypatch, tmp_path):
    """The interrupt comes while the first answer is waited for; what has come of it is kept."""
    wait, interrupts = Reply.wait, iter([KeyboardInterrupt()])

    def interrupted(self, seconds):
        wait(self, seconds)
        if self.text and (error := next(interrupts, None)):
            raise error

    monkeypatch.setattr(Reply, "wait", interrupted)
    file = tmp_path / "chat.jsonl"
    code, lines, _ = chat(["a", "b", f"/save {file}"], "dpo", max_new_tokens=60)
    assert code == 0
    assert any(line.endswith(" [stopped]") for line in lines)
    assert [message["content"] for message in json.loads(file.read_text())["messages"][::2]] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["RUN"], 1, ["RUN/config.json", "RUN/model/config.json", "RUN/dpo"]),
        (["RUN/data"], 1, ["RUN/data/config.json", "RUN/data/model/config.json"]),
        (["RUN/nothing"], 1, ["RUN/nothing"]),
        (["RUN/foreign"], 1, ["RUN/foreign/config.json", "model_type", "bert"]),
        (["RUN/plain"], 1, ["RUN/plain/model", "tokenizer_config.json"]),
        (["RUN/dpo", "RUN/dpo/model"], 2, ["RUN/dpo/model", "NAME=PATH"]),
        (["=RUN/dpo"], 2, ["=RUN/dpo", "NAME=PATH"]),
        (["RUN/dpo", "--temperature", "-1"], 2, ["temperature", "-1.0"]),
        ([], 2, ["models"]),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, code, named):
    assert main(["chat", *(word.replace("RUN", str(run)) for word in words)]) == code
    error_line(capsys, *(token.replace("RUN", str(run)) for token in named), alone=True)


def test_text_cannot_steer_the_terminal():
    assert printable("a\x1b[2J\tb\nc\x9b") == "a\N{REPLACEMENT CHARACTER}[2J\tb\nc\N{REPLACEMENT CHARACTER}"


def test_generate_streams_what_it_samples(run, capsys):
    words = ["generate", str(run / "dpo"), "--prompt", "ä", "--max_new_tokens", "9", "--seed", "2"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--stream", "yes"]) == 0
    assert capsys.readouterr().out == plain
    assert main([*words, "--stream", "yes", "--n", "2"]) == 2
    error_line(capsys, "--stream", "--prompt", "--n")


def test_a_byte_that_is_no_utf8_leaves_the_chat_usable(run, tmp_path):
    """The byte becomes U+FFFD, and the next line is answered."""
    file = tmp_path / "chat.jsonl"
    command = [sys.executable, "-m", "align", "chat", str(run / "dpo"), "--max_new_tokens", "3"]
    said = b"a\xffb\nand then?\n" + f"/save {file}\n".encode()
    result = subprocess.run(command, input=said, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"error" not in result.stdout
    questions = [message["content"] for message in json.loads(file.read_text())["messages"][::2]]
    assert questions == ["a\N{REPLACEMENT CHARACTER}b", "and then?"]


def test_a_message_that_cannot_be_encoded_leaves_the_history(run):
    tokenizer = Tokenizer.load(run / "dpo" / "model")
    network = load_network(run / "dpo" / "model")
    conversation = Conversation(ChatModel("dpo", network, tokenizer, SamplingConfig(max_new_tokens=2)), seed=0)
    with pytest.raises(ValueError, match=r"surrogate U\+DCFF"):
        conversation.say("\udcff")
    assert conversation.messages == []
    conversation.finish(conversation.say("a").reply)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_a_pipe_drives_the_program(run):
    """As people do it; the end of the input ends the chat."""
    command = [sys.executable, "-m", "align", "chat", str(run / "dpo"), "--max_new_tokens", "3"]
    result = subprocess.run(command, input="hello\n/quit\n", capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()
