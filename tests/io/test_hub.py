"""Names that neither this machine nor the Hub knows, and what the line about them says to do."""

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from naming import names, naming

from align.io.hub import gguf_from_hub
from align.io.location import locate
from align.tokenizer import Tokenizer


@pytest.fixture
def failing(monkeypatch):
    """Make every call to the Hub raise an error."""

    def fail(error):
        def answer(*_, **__):
            raise error

        for name in ("snapshot_download", "list_repo_files", "hf_hub_download"):
            monkeypatch.setattr(huggingface_hub, name, answer)

    return fail


class ConnectError(Exception):
    """As HTTP clients have them, of no kind that Python knows."""


def bare(kind: type[Exception]) -> Exception:
    """An error of the Hub without the response that it would carry."""
    return kind.__new__(kind, "reason")


UNREACHABLE = errors.LocalEntryNotFoundError("Got: ConnectError\nmore")
WAYS_OUT = {
    "unreachable": (UNREACHABLE, "hf download owner/name --local-dir"),
    "a client's own type": (ConnectError("no route"), "hf download owner/name --local-dir"),
    "unknown": (bare(errors.RepositoryNotFoundError), "hf auth login"),
    "gated": (bare(errors.GatedRepoError), "conditions"),
}


@pytest.mark.parametrize("load", [locate, Tokenizer.load])
@pytest.mark.parametrize("source", ["owner/name", "owner/name/part/FILE.gguf"])
@pytest.mark.parametrize(("error", "way_out"), WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_the_line_says_what_to_do(failing, error, way_out, load, source):
    failing(error)
    with pytest.raises(FileNotFoundError, match=naming(source, way_out)) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_a_forbidden_hub_is_said_to_be(failing, monkeypatch):
    failing(UNREACHABLE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        locate("owner/name")
    assert names(str(caught.value), "HF_HUB_OFFLINE")


@pytest.mark.parametrize("load", [locate, Tokenizer.load])
@pytest.mark.parametrize("source", ["absent.gguf", "models/absent.gguf", "models/deep/absent.gguf"])
def test_a_local_gguf_file_that_is_missing_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, failing, load, source):
    failing(AssertionError("asked the Hub"))
    (tmp_path / "models/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=naming(source, "no such file")) as caught:
        load(source)
    assert not names(str(caught.value), "Hub")
    assert gguf_from_hub(source) is None
