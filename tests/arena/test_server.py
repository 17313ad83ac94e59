"""The arena's routes on tiny random models: what the page may know, who may vote, and what is refused."""

import asyncio
import json
from collections import Counter

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from naming import error_line, names

from align.arena.rounds import LONGEST_PROMPT, Arena, Refused, Round, draw
from align.arena.server import make_app
from align.arena.votes import VOTES, VoteFiles
from align.cli import main
from align.generation.generate import generate
from align.generation.reply import ChatModel
from align.generation.sampling import response_seed


def serve(arena, play):
    """What ``play`` returns of a client of the arena's server."""

    async def run():
        async with TestClient(TestServer(make_app(arena, host="127.0.0.1"))) as client:
            return await play(client)

    return asyncio.run(run())


async def respond(client, prompt="a", suggestion=None):
    """The name of a round whose responses are complete, and the events that showed them."""
    reply = await client.post("/rounds", json={"prompt": prompt, "suggestion": suggestion})
    name = (await reply.json())["round"]
    events = await (await client.get(f"/rounds/{name}/events")).text()
    return name, events


async def cast(client, name, vote="left"):
    return await client.post(f"/rounds/{name}/vote", json={"vote": vote})


def test_nothing_names_a_model_before_the_vote(make_arena, members):
    """Neither name nor weights in any body or header; afterwards the names are those of the file."""
    arena = make_arena(prompts=["p"], system="s")

    async def play(client):
        replies = [await client.get("/"), await client.get("/suggestion")]
        replies.append(await client.post("/rounds", json={"prompt": "a", "suggestion": 0}))
        name = (await replies[-1].json())["round"]
        replies.append(await client.get(f"/rounds/{name}/events"))
        replies.append(await client.post(f"/rounds/{name}/vote", json={"vote": "all"}))
        replies.append(await client.post("/rounds", json={"prompt": "a" * 99}))
        said = [await reply.text() + str(reply.headers) for reply in replies]
        return said, await (await cast(client, name)).json()

    said, shown = serve(arena, play)
    secrets = [secret for each in members for secret in each.identity]
    assert [secret for secret in secrets for text in said if secret in text] == []
    vote = arena.files.votes[0]
    assert (shown["left"], shown["right"]) == (vote.left.model, vote.right.model)
    assert (
        {*shown["table"]["pairs"][0]["models"]}
        == {vote.left.model, vote.right.model}
        == {each.model.name for each in members[:2]}
    )


def test_the_order_is_random_and_follows_from_the_seed():
    """Of three models all six ordered pairs are drawn, each about 100 times of 600: within five standard deviations."""
    drawn = [draw(3, seed=0, number=number) for number in range(600)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert all(abs(count - 100) < 46 for count in counts.values())
    assert drawn == [draw(3, seed=0, number=number) for number in range(600)]
    assert drawn != [draw(3, seed=1, number=number) for number in range(600)]


def test_votes_say_how_the_responses_came_about(make_arena, members):
    """A response is the one that ``generate`` gives for the record's prompt, settings and seed."""
    arena = make_arena(3, seed=7, prompts=[[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"},
                                            {"role": "user", "content": "z"}]], system="s")  # fmt: skip

    async def play(client):
        offered = await (await client.get("/suggestion")).json()
        name, events = await respond(client, "edited", offered["index"])
        await cast(client, name, "both_bad")
        return offered, json.loads(events.strip().splitlines()[-1].removeprefix("data: "))

    offered, last = serve(arena, play)
    earlier = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    earlier.append({"role": "assistant", "content": "y"})
    assert (offered["earlier"], offered["text"], offered["own"]) == (earlier, "z", earlier[:1])
    (vote,) = arena.files.votes
    assert vote.prompt == [*earlier, {"role": "user", "content": "edited"}]
    assert (vote.seed, vote.round, vote.vote) == (7, 0, "both_bad")
    for index, side in zip(draw(3, seed=7, number=0), vote.sides, strict=True):
        model = members[index].model
        assert side.identity == members[index].identity
        assert side.seed == response_seed(7, 0, index)
        sampling = type(model.sampling)(**side.sampling)
        stops = model.tokenizer.stop_ids
        samples = generate(model.network, [model.encode(vote.prompt)], sampling, seeds=[side.seed], stop_ids=stops)
        ids = samples.ids[0][samples.mask[0]].tolist()
        assert model.tokenizer.decode(ids) == side.response
        assert samples.finished[0] == side.finished
    assert (last["left"], last["right"], last["over"]) == (vote.left.response, vote.right.response, True)


def test_a_restart_continues_rounds_and_table(make_arena):
    async def play(client):
        for vote in ("left", "tie"):
            await cast(client, (await respond(client))[0], vote)
        return await (await client.get("/table.json")).json()

    prompts = ["p0", "p1", "p2"]
    before = serve(make_arena(prompts=prompts), play)
    arena = make_arena(prompts=prompts)
    assert arena.table() == before
    assert before["pairs"][0]["votes"] == 2
    assert arena.suggestion()["text"] == "p2"
    serve(arena, play)
    assert [vote.round for vote in arena.files.votes] == [0, 1, 2, 3]
    assert make_arena(3).table()["elsewhere"] == 0


class Slow:
    """A reply that never ends, or has failed."""

    def __init__(self, text="abc", reason=None):
        self.text, self.reason, self.error = text, reason, "aardvark is out of memory"

    def cancel(self):
        self.reason = self.reason or "cancelled"


def test_texts_grow_at_the_pace_of_the_slower(members):
    fast, slow = Slow("abcdef", "stop"), Slow("uv")
    shown = Round(0, [], (members[0], members[1]), (fast, slow))
    assert shown.progress() == {"left": "ab", "right": "uv", "over": False, "ended": {}}
    slow.reason = "length"
    ended = {"left": "stop", "right": "length"}
    assert shown.progress() == {"left": "abcdef", "right": "uv", "over": True, "ended": ended}


def test_a_vote_waits_for_both_responses(make_arena, monkeypatch, capsys):
    replies = [Slow(), Slow(reason="stop")]
    monkeypatch.setattr(ChatModel, "respond", lambda self, ids, *, seed: replies.pop())
    arena = make_arena()
    name = arena.start("a", None)
    with pytest.raises(Refused):
        arena.vote(name, "left")
    arena.round(name).replies[1].reason = "failed"
    with pytest.raises(Refused):
        arena.vote(name, "left")

    async def play(client):
        return await (await client.get(f"/rounds/{name}/events")).text()

    assert "memory" not in serve(arena, play)
    assert "memory" in capsys.readouterr().err
    assert arena.files.votes == []


def test_a_page_that_is_closed_and_a_server_that_ends_leave_nothing_running(make_arena, monkeypatch):
    replies = [Slow() for _ in range(4)]
    left = [*replies]
    monkeypatch.setattr(ChatModel, "respond", lambda self, ids, *, seed: left.pop())
    arena = make_arena()
    dropped = arena.start("a", None)
    waiting = arena.start("b", None)

    async def play(client):
        (await client.get(f"/rounds/{waiting}/events")).close()
        assert (await client.post(f"/rounds/{dropped}/drop", json={})).status == 200
        assert [reply.reason for reply in replies] == [None, None, "cancelled", "cancelled"]
        stream = await client.get(f"/rounds/{waiting}/events")
        assert stream.status == 200
        return (await client.get("/suggestion")).status

    assert serve(arena, play) == 200
    assert {reply.reason for reply in replies} == {"cancelled"}


def test_a_round_takes_one_vote_and_few_rounds_wait(make_arena):
    async def play(client):
        name, _ = await respond(client)
        statuses = [(await cast(client, name)).status, (await cast(client, name, "right")).status]
        waiting = [(await respond(client))[0] for _ in range(9)]
        statuses.append((await cast(client, waiting[0])).status)
        statuses.append((await client.post(f"/rounds/{waiting[1]}/drop", json={})).status)
        statuses += [(await cast(client, each)).status for each in waiting[1:3]]
        return statuses

    arena = make_arena()
    assert serve(arena, play) == [200, 400, 400, 200, 400, 200]
    assert [vote.vote for vote in arena.files.votes] == ["left", "left"]


def test_the_page_is_told_what_is_wrong(make_arena):
    """The context of 96 leaves 6 tokens for a response: 90 for the prompt."""
    bad = [
        ("/rounds", {"prompt": " \n"}, 400, ["empty"]),
        ("/rounds", {"prompt": 3}, 400, ["prompt", 3]),
        ("/rounds", {}, 400, ["prompt", None]),
        ("/rounds", [], 400, ["list", "object"]),
        ("/rounds", {"prompt": "a" * 95}, 400, ["tokens", 96, 90]),
        ("/rounds", {"prompt": "a" * (LONGEST_PROMPT + 1)}, 400, [LONGEST_PROMPT + 1, LONGEST_PROMPT]),
        ("/rounds", {"prompt": "a" * (1 << 20)}, 413, [1 << 20]),
        ("/rounds", {"prompt": "\ud800"}, 400, ["surrogate"]),
        ("/rounds", {"prompt": "a", "suggestion": 1}, 400, ["suggestion", 1]),
        ("/rounds", {"prompt": "a", "suggestion": -1}, 400, ["suggestion", -1]),
        ("/rounds", {"prompt": "a", "suggestion": True}, 400, ["suggestion", True]),
        ("/rounds/absent/vote", {"vote": "left"}, 400, ["round"]),
        ("/rounds/absent/vote", {"vote": ["left"]}, 400, ["vote"]),
        ("/rounds/absent/drop", {}, 400, ["round"]),
    ]
    arena = make_arena(prompts=["p"])

    async def play(client):
        replies = [await client.post(path, json=body) for path, body, _, _ in bad]
        torn = await client.post("/rounds", data=b"{", headers={"Content-Type": "application/json"})
        return [(reply.status, (await reply.json())["error"]) for reply in (*replies, torn)]

    found = serve(arena, play)
    for (status, error), (_, body, expected, tokens) in zip(found, [*bad, (0, "{", 400, ["JSON"])], strict=True):
        assert status == expected, body
        assert names(error, *tokens), error
    assert arena.suggestion()["index"] == 0, "no round was started"


def test_a_full_disk_keeps_the_round(make_arena, monkeypatch, capsys):
    arena = make_arena()

    async def play(client):
        name, _ = await respond(client)
        with monkeypatch.context() as full:
            full.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            refused = await cast(client, name)
        return refused.status, (await refused.json())["error"], (await cast(client, name)).status

    status, error, again = serve(arena, play)
    assert (status, again) == (500, 200)
    assert "No space left on device" in error
    assert len(VoteFiles(arena.files.folder).votes) == 1


def test_pages_of_other_sites_cannot_vote(make_arena):
    """Cross-origin POSTs, forms, and names that were rebound to this machine."""
    arena = make_arena()

    async def play(client):
        own = f"127.0.0.1:{client.port}"
        name, _ = await respond(client)
        foreign = [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Host": "evil.example"},
            {"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"},
        ]
        path, body = f"/rounds/{name}/vote", {"vote": "left"}
        statuses = [(await client.post(path, json=body, headers=headers)).status for headers in foreign]
        plain = {"Content-Type": "text/plain"}
        statuses.append((await client.post(path, data=json.dumps(body), headers=plain)).status)
        statuses.append((await client.get("/table.json", headers={"Host": "evil.example"})).status)
        own_names = ["localhost:1", "[::1]:1", "192.168.1.7", "LOCALHOST"]
        read = [(await client.get("/table.json", headers={"Host": host})).status for host in own_names]
        assert read == [200] * 4
        mine = {"Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}
        return statuses, (await client.post(path, json=body, headers=mine)).status

    assert serve(arena, play) == ([403] * 9, 200)
    assert len(arena.files.votes) == 1


def test_an_arena_takes_two_models_and_prompts_of_users(members, tmp_path):
    with pytest.raises(ValueError, match="two models"):
        Arena(members[:1], VoteFiles(tmp_path), seed=0)
    with pytest.raises(ValueError, match=r"prompt 2 .*'tool'"):
        Arena(members, VoteFiles(tmp_path), seed=0, prompts=["a", [{"role": "tool", "content": "b"}]])


def test_the_command(directories, tmp_path, monkeypatch, capsys):
    """The server itself is stood in for: it announces, serves a vote, and ends."""
    out, hosts = tmp_path / "out", []
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')

    def run_app(app, *, host, print, **settings):
        hosts.append(host)
        print("ready")

        async def play(client):
            assert (await (await client.get("/suggestion")).json())["text"] == "p"
            assert (await cast(client, (await respond(client))[0])).status == 200

        async def run():
            async with TestClient(TestServer(app)) as client:
                await play(client)

        asyncio.run(run())

    monkeypatch.setattr(web, "run_app", run_app)
    words = [*(f"{name}={path}" for name, path in directories.items()), "--out", str(out), "--port", "0"]
    words += ["--max_new_tokens", "3", "--prompts", str(tmp_path / "prompts.jsonl"), "--json"]
    assert main(["arena", *words]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["models"] == [*directories]
    assert first["url"].startswith("http://127.0.0.1:")
    assert sum(pair["votes"] for pair in last["pairs"]) == 1
    assert json.loads((out / VOTES).read_text())["left"]["sampling"]["max_new_tokens"] == 3
    assert main(["arena", *words[:-1], "--host", "0.0.0.0"]) == 0
    shown = capsys.readouterr()
    assert "warning" in shown.err
    assert shown.out.count("against") == 3
    assert hosts == ["127.0.0.1", "0.0.0.0"]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["ONE"], 2, ["models", "two"]),
        (["ONE", "OTHER", "--port", "70000"], 2, ["port", 70000, 65535]),
        (["ONE", "ONE"], 2, ["aardvark", "NAME=PATH"]),
        (["ONE", "OTHER", "--out", "FILE"], 2, ["--out", "FILE"]),
        (["ONE", "OTHER", "--prompts", "absent.jsonl"], 1, ["absent.jsonl"]),
    ],
)
def test_mistakes_are_one_line(directories, tmp_path, capsys, words, code, named):
    file = tmp_path / "file"
    file.touch()
    values = {"ONE": directories["aardvark"], "OTHER": directories["zebra"], "FILE": file}
    if "--out" not in words:
        words = [*words, "--out", str(tmp_path / "out")]
    assert main(["arena", *(str(values.get(word, word)) for word in words)]) == code
    error_line(capsys, *(values.get(token, token) if isinstance(token, str) else token for token in named), alone=True)
