"""recipes/corpus/web.yaml from a crawl, an encyclopedia and a book; a recipe submitted to a cluster."""

import bz2
import gzip
import json
import os
import random
import stat
import sys
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from cleaning_data import RECIPE, plant

from align.cli import main

ROOT = Path(__file__).resolve().parents[3]
SENTENCES = (
    "The bridge over the river was built by the people of the village, and it has stood for a hundred years.",
    "Every morning the teacher walks to the school with a bag of books that her children have read.",
    "When the winter came, they brought wood to the house and waited for the snow to melt in the garden.",
    "He wrote a long letter to his sister and told her about the market, the music and the silver lamps.",
    "After the rain had stopped, the light on the mountain was so clear that we could count the trees.",
    "She opened the window of the kitchen because the evening was warm and the air smelled of bread.",
    "They said that the stone wall at the end of the field had been there before the first house.",
    "We have to be careful with the old machine, which makes a noise that frightens the horses.",
)


def _prose(seed: int) -> list[str]:
    """Paragraphs that the published filters keep: sentences of several lengths, none of them twice."""
    rng = random.Random(seed)
    names = ["Anna", "Peter", "Martha", "Simon", "Clara", "David"]
    return [
        " ".join(sentence.replace("the", rng.choice(names) + "'s", 1) for sentence in rng.sample(SENTENCES, 3))
        for _ in range(2)
    ]


def _has_magic() -> bool:
    try:
        import magic  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not _has_magic(), reason="needs libmagic, which datatrove's WarcReader loads")
def test_a_crawl_an_encyclopedia_and_a_book_become_a_corpus(tmp_path: Path):
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    raw = tmp_path / "raw"
    for name in ("crawl", "wiki", "books"):
        (raw / name).mkdir(parents=True)
    menu = "".join(f"<li><a href='/{number}'>Link {number}</a></li>" for number in range(40))
    pages = {
        "https://example.com/story": "".join(f"<p>{paragraph}</p>" for paragraph in _prose(1)),
        "https://example.com/menu": f"<ul>{menu}</ul>",
    }
    with open(raw / "crawl/a.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, body in pages.items():
            page = f"<html><body><nav>{menu}</nav><article>{body}</article></body></html>"
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.0")
            record = writer.create_warc_record(url, "response", payload=BytesIO(page.encode()), http_headers=headers)
            writer.write_record(record)
    article = "\n\n".join(_prose(2))
    wiki = (
        f"<mediawiki><page><title>Bridge</title><ns>0</ns><id>1</id><revision><text>{article}</text></revision></page>"
        "</mediawiki>"
    )
    (raw / "wiki/x-pages-articles.xml.bz2").write_bytes(bz2.compress(wiki.encode()))
    book = "\n\n".join(_prose(3))
    mark = "*** {} OF THE PROJECT GUTENBERG EBOOK BRIDGES ***"
    (raw / "books/1.txt").write_text(f"Licence\n{mark.format('START')}\n{book}\n{mark.format('END')}\nLicence\n")
    words = ["--config", str(ROOT / "recipes/corpus/web.yaml"), "--inputs", str(raw), "--out", str(tmp_path / "out")]
    assert main(["data", "clean", *words, "--tasks", "1", "--executor.workers", "1"]) == 0
    files = (tmp_path / "out/corpus").rglob("*.gz")
    kept = [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert {record["metadata"]["source"] for record in kept} == {"crawl", "wiki", "books"}
    texts = {record["metadata"]["source"]: record["text"] for record in kept}
    assert "Link 1" not in texts["crawl"]
    assert "Licence" not in texts["books"]
    assert all(sentence in texts["wiki"] for sentence in _prose(2)[0].split("\n"))


@pytest.mark.slow
def test_jobs_are_submitted_each_after_the_one_before(tmp_path: Path, monkeypatch, capsys):
    """With stand-ins for Slurm's programs, which run what they are given at once."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "submitted"
    written = {
        "sbatch": (
            f'#!/bin/bash\necho "$@" >> {log}\nscript="${{@: -1}}"\n'
            'export SLURM_JOB_ID=$(wc -l < "' + str(log) + '") SLURM_NODELIST=here\n'
            "if grep -q array= $script; then export SLURM_ARRAY_TASK_ID=0; fi\n"
            f"bash $script >> {tmp_path}/jobs.log 2>&1 || exit 1\n"
            'echo "Submitted batch job $SLURM_JOB_ID"\n'
        ),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
    }
    for name, text in written.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    (programs / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    plant(tmp_path / "raw", documents=3)
    recipe = tmp_path / "recipe.yaml"
    executor = {
        "class_path": "align.curate.cleaning.Slurm",
        "init_args": {"partition": "cpu", "time": "1:00:00", "venv_path": str(programs / "activate")},
    }
    steps = {"sources": {"prose": RECIPE["sources"]["prose"]}, "steps": RECIPE["steps"][:1], "tasks": 1}
    recipe.write_text(yaml.safe_dump(steps | {"executor": executor}))
    words = [
        "data",
        "clean",
        "--config",
        str(recipe),
        "--inputs",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0, (tmp_path / "jobs.log").read_text()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {step["step"] for step in report["steps"]} == {"prose-read", "prose-Language", "ExactDuplicates"}
    assert (tmp_path / "out/corpus").is_dir()
    submitted = log.read_text().splitlines()
    dependent = [line for line in submitted if "--dependency=afterok:" in line]
    assert len(dependent) == 4  # read, pass-1, find, pass-2, finish: all but the first
    before = len(submitted)
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    assert len(log.read_text().splitlines()) == before, "what is complete is not submitted again"
    assert json.loads(capsys.readouterr().out) == report
