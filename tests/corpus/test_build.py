"""Whole builds: stages in their order, the same bytes for any workers and engine, restarts, and bad input."""

import dataclasses
import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scaling.config.files import edited
from scaling.corpus import stages
from scaling.corpus.build import build
from scaling.corpus.config import CORPUS, checked, load
from scaling.corpus.filters.toxicity import Toxicity
from scaling.corpus.reading.read import find
from scaling.data.shards import TokenDataset, read_index
from tests.evaluate.tasks.stand_ins import TASK
from tests.programs import environment

WORDS = ("the of and to in river house under light seven winter garden stone they had been with a long road").split()  # noqa: SIM905
PAGE = "<html><body><nav>home news</nav><article>{}</article><footer>legal</footer></body></html>"


def sentences(seed, count=12):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=14)).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two data sets: curated texts with votes, and a crawl of pages, of which one is also curated, one occurs twice."""
    folder = tmp_path_factory.mktemp("raw")
    curated = [{"text": "\n".join(sentences(number)), "karma": number % 5, "id": f"c{number}"} for number in range(20)]
    for part in range(2):
        lines = [json.dumps(one) for one in curated[part::2]]
        (folder / f"web{part}.jsonl").write_text("\n".join(lines) + "\n")
    pages = [f"<p>{'</p><p>'.join(sentences(100 + number))}</p>" for number in range(12)]
    pages += [pages[0], f"<p>{'</p><p>'.join(sentences(4))}</p>"]
    with gzip.open(folder / "crawl.jsonl.gz", "wt") as file:
        for number, page in enumerate(pages):
            file.write(json.dumps({"text": PAGE.format(page), "url": f"http://site/{number}"}) + "\n")
        file.write("{broken\n")
    return folder


def config(raw, workdir, **changes):
    values = CORPUS.default()
    values.workdir = str(workdir)
    values.workers = 1
    values.sources = (
        ("web", f"{raw}/web*.jsonl", "votes=karma"),
        ("crawl", f"{raw}/crawl.jsonl.gz", "html"),
    )
    values.only = (("votes", "web"), ("quality", "crawl"))
    values.votes.least = 1.0
    values.language.keep = ()
    values.heuristics.presets = ()
    values.quality.positives = ("web",)
    values.quality.alpha = 0.0
    values.exact.order = values.fuzzy.order = ("web",)
    values.tokens.tokenizer = "bytes"
    values.mixture.weights = (("web", 0.7), ("crawl", 0.3))
    for name, value in changes.items():
        *sections, knob = name.split("__")
        target = values
        for section in sections:
            target = target[section]
        target[knob] = value
    return checked(edited(CORPUS, values, []))


def content(folder):
    """All bytes of a build, but for what tells its time or place."""
    own = {"report.html", "config.json", "manifest.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own
    }


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    return build(config(raw, tmp_path_factory.mktemp("built")))


def counts(built, stage, data_set):
    tally = built.tallies[stage][data_set]
    return tally.documents_in, tally.documents_out


def test_each_stage_does_its_part(built, raw):
    assert counts(built, "read", "web") == (20, 20) and counts(built, "read", "crawl") == (15, 14)
    assert counts(built, "votes", "web") == (20, 16)  # those of 0 votes go
    assert "crawl" not in built.tallies["votes"]
    assert counts(built, "extract", "crawl") == (14, 14)
    (fault,) = built.tallies["read"]["crawl"].faults
    assert (fault.file, fault.place) == ("crawl/crawl.jsonl.gz", 15)
    # One page twice, and one page whose text is also in the curated set, whose copy stays.
    assert counts(built, "exact", "crawl") == (14, 12)
    assert counts(built, "exact", "web") == (16, 16)
    assert built.tallies["quality"]["crawl"].notes["held-out curated documents"]


def test_tokens_and_manifest(built):
    index = {name: read_index(built.folder / "tokens" / name) for name in ("web", "crawl")}
    assert [index[name].documents for name in ("web", "crawl")] == [16, 12]
    assert [each.weight for each in built.manifest.datasets] == [0.7, 0.3]
    assert [each.tokens for each in built.manifest.datasets] == [index["web"].tokens, index["crawl"].tokens]
    text = bytes(TokenDataset(built.folder / "tokens" / "crawl", 64).read(0, 200).astype("uint8")).decode()
    assert "\n".join(sentences(100))[:150] in text and "home news" not in text


@pytest.mark.slow
def test_the_best_share_of_all_parts(built, raw, tmp_path):
    """Of the documents of all parts, those with the best scores stay."""

    def found(folder):
        parts = sorted((folder / "stages/05-quality/crawl").glob("*.parquet"))
        tables = [pq.read_table(part, columns=["quality", "text"]) for part in parts]
        return len(parts), {row["text"]: row["quality"] for table in tables for row in table.to_pylist()}

    made = build(config(raw, tmp_path, quality__best=0.5, read__part_bytes=1000))
    parts, kept = found(tmp_path)
    every = found(built.folder)[1]
    assert parts > 1 and 0 < len(kept) < len(every)
    assert min(kept.values()) > max(score for text, score in every.items() if text not in kept)
    tally = made.tallies["quality"]["crawl"]
    worst = 2 * sum(len(text) for text, score in kept.items() if score == min(kept.values()))  # one page is there twice
    assert tally.bytes_out / tally.bytes_in >= 0.5 > (tally.bytes_out - worst) / tally.bytes_in
    assert "web" not in made.tallies["quality"]


def test_page_and_figures(built):
    page = (built.folder / "report.html").read_text()
    for words in (
        *("From stage to stage", "exact duplicate", "What could not be read", "crawl.jsonl.gz", "Mixture"),
        *("area under the ROC curve of held-out documents", "held-out raw documents"),
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://site/", "")
    figures = json.loads((built.folder / "report.json").read_text())
    # The byte tokenizer makes a token of each byte, and one at the end of each of the 12 documents.
    size = figures["tokens"]["crawl"]["bytes_in"]
    row = re.search(r"<tr><td>tokens</td><td>crawl</td>.*?</tr>", page, re.DOTALL)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[0])
    assert cells[2:8] == ["12", "12", f"{size:,}", f"{size:,}", f"{size + 12:,}", f"{size + 12:,}"]
    assert figures["exact"]["crawl"]["documents_out"] == 12


@pytest.mark.parametrize("changes", [{"workers": 2}, pytest.param({"engine": "ray"}, marks=pytest.mark.slow)], ids=str)
@pytest.mark.slow
def test_the_same_bytes(built, raw, tmp_path, changes):
    if "engine" in changes:
        pytest.importorskip("ray")
    # In a process of its own: Daft has one runner in a process.
    program = (
        "import sys; from tests.corpus.test_build import config; from scaling.corpus.build import build; "
        f"build(config(sys.argv[1], sys.argv[2], **{changes!r}))"
    )
    subprocess.run([sys.executable, "-c", program, str(raw), str(tmp_path)], check=True, env=environment())
    assert content(tmp_path) == content(built.folder)


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(built, raw, tmp_path):
    program = (
        "import sys; from tests.corpus.test_build import config; from scaling.corpus.build import build; "
        "build(config(sys.argv[1], sys.argv[2]))"
    )
    for stage in ("02-votes", "07-fuzzy", "09-tokens"):
        process = subprocess.Popen([sys.executable, "-c", program, str(raw), str(tmp_path)], env=environment())
        end = time.monotonic() + 300
        while not (tmp_path / "stages" / stage).exists() and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert build(config(raw, tmp_path)).manifest
    left = content(tmp_path)
    assert not [name for name in left if "partial" in name or ".tmp" in name]
    assert left == content(built.folder)


def test_what_is_done_is_not_done_again_and_what_changed_is(raw, tmp_path):
    stages = ("read", "votes", "extract", "exact")
    build(config(raw, tmp_path, stages=stages, only=(("votes", "web"),)))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    build(config(raw, tmp_path, stages=stages, only=(("votes", "web"),)))
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    build(config(raw, tmp_path, stages=stages, only=(("votes", "web"),), votes__least=2.0))
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    kept = [path for path in times if "01-read" in str(path) or "extract/crawl" in str(path)]  # crawl has no votes
    assert all(times[path] == again[path] for path in kept) and len(kept) == 4
    assert all(times[path] != again[path] for path in times.keys() & again.keys() if path not in kept)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sources": ()}, "config.sources is empty"),
        ({"sources": (("a/b", "x"),)}, "'a/b' must have a name"),
        ({"sources": (("a", "x", "body=content"),)}, "'body=content' of a"),
        ({"stages": ("read", "quality")}, "must begin with read and extract"),
        ({"stages": ("read", "extract", "qualty")}, "no stage 'qualty'"),
        ({"stages": ("read", "extract", "mixture")}, "after tokens"),
        ({"only": (("tokens", "web"),)}, "'tokens' must be one of"),
        ({"only": (("quality", "wbe"),)}, "'wbe', which is none of web, crawl"),
        ({"workers": -1}, "config.workers=-1"),
        ({"only": (("quality", "web"), ("quality", "crawl"))}, "names quality twice"),
        ({"only": (("fuzzy", ""),)}, "fuzzy names no data set"),
        ({"stages": ("votes", "read", "extract")}, "must begin with read and extract"),
        ({"stages": ("read", "extract", "votes")}, "must begin with read and extract"),
        ({"stages": ("read", "extract", "decontaminate")}, "config.decontaminate.tasks names no task"),
        ({"stages": ("read", "extract", "toxicity")}, "config.toxicity.classifier names no run"),
        ({"only": (("votes", "crawl"),)}, "has no votes=KEY"),
        ({"fuzzy__threshold": 2.0}, "fuzzy.threshold=2.0"),
        ({"fuzzy__order": ("wbe",)}, "fuzzy: order names the data set 'wbe'"),
        ({"exact__order": ("wbe",)}, "exact: order names the data set 'wbe'"),
        ({"language__keep": ("xx",)}, "knows no language 'xx'"),
        ({"quality__positives": ("wbe",)}, "there is no data set 'wbe'"),
        ({"read__longest": -5}, "read.longest=-5"),
        ({"read__part_bytes": 0}, "read.part_bytes=0"),
        ({"extract__seconds": -1.0}, "extract.seconds=-1.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_knobs_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        config(Path("nowhere"), tmp_path, **changes)


def test_what_cannot_be_used_is_refused_before_anything_is_written(raw, tmp_path):
    (tmp_path / "two").mkdir()
    for number, (changes, error, words) in enumerate(
        [
            ({"sources": (("a", f"{tmp_path}/nowhere"),)}, FileNotFoundError, "nowhere"),
            ({"mixture__weights": (("web", 1.0),)}, ValueError, "no weight for crawl"),
            ({"decontaminate__tasks": "nosuch"}, ValueError, "nosuch is no task"),
            ({"tokens__tokenizer": "nosuch"}, (ValueError, OSError), "nosuch"),
            ({"heuristics__presets": ("c4",), "heuristics__bad_words": "/nowhere"}, FileNotFoundError, "/nowhere"),
            ({"toxicity__classifier": "/nowhere"}, FileNotFoundError, "/nowhere"),
            ({"quality__classifier": "/nowhere"}, FileNotFoundError, "/nowhere"),
            ({"sources": (("web", f"{raw}/*.jsonl"), ("web", f"{raw}/web0*"))}, ValueError, "two sources of web"),
        ]
    ):
        own = {"only": (), "quality__positives": ()} if "sources" in changes else {}
        own |= {"mixture__weights": (), "exact__order": (), "fuzzy__order": ()} if "sources" in changes else {}
        with pytest.raises(error, match=words):
            build(config(raw, tmp_path / f"two/{number}", **own, **changes))
    assert not [*(tmp_path / "two").iterdir()]


def test_the_shipped_recipe_reads_pages_and_texts_of_the_crawl_and_no_metadata(tmp_path):
    for name in ("a.warc.gz", "b/c.warc.wet.gz", "d.wet.gz", "c.warc.wat.gz", "d.wat.gz"):
        (tmp_path / "crawl" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crawl" / name).touch()
    recipe = load(f"data/gpt3_small:{tmp_path}")
    assert recipe.stages[:5] == ("read", "votes", "extract", "language", "quality")
    (crawl,) = (source[1] for source in recipe.sources if source[0] == "crawl")
    assert [file.rsplit("/", 1)[1] for file in find(crawl)] == ["a.warc.gz", "c.warc.wet.gz", "d.wet.gz"]


def test_what_a_stage_takes_from_outside_changes_with_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("1")
    toxic = dataclasses.replace(CORPUS.root, toxicity=Toxicity(classifier=str(tmp_path / "run")))
    before = stages.outside("toxicity", toxic)
    assert before == stages.outside("toxicity", toxic)
    (tmp_path / "run/config.json").write_text("22")
    assert stages.outside("toxicity", toxic) != before


def test_only_sources_are_needed():
    values = CORPUS.default()
    values.sources = (("web", "web.jsonl"),)
    plain = checked(edited(CORPUS, values, []))
    assert plain.stages == (
        *("read", "extract", "language", "heuristics", "exact", "fuzzy", "demonstrations", "tokens", "mixture"),
    )
    values.sources = (("web", "web.jsonl", "votes=karma"), ("crawl", "x.warc.gz"))
    values.decontaminate.tasks = "lambada"
    more = checked(edited(CORPUS, values, []))
    assert {*more.stages} - {*plain.stages} == {"votes", "decontaminate"} and more.datasets("votes") == ("web",)


def test_a_source_that_changes_costs_only_its_parts(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"Text of {name}.")
    own = {"only": (), "stages": ("read", "extract", "demonstrations"), "read__part_bytes": 1}
    one, two = ("one", f"{tmp_path}/[ab].txt"), ("two", f"{tmp_path}/c.txt")

    def made(*sources):
        build(config("", tmp_path / "run", **own, sources=sources))
        return {
            str(path.relative_to(tmp_path / "run/stages")): path.stat().st_mtime_ns
            for path in (tmp_path / "run").rglob("*.parquet")
        }

    before = made(one)
    both = made(one, two)
    assert before.items() <= both.items() and len(both) == len(before) + 3
    (tmp_path / "b.txt").write_text("Other text of b.")
    after = made(one, two)
    changed = {name for name, time in after.items() if time != both[name]}
    assert changed == {
        f"{folder}/one/f00001-00000.parquet" for folder in ("01-read/raw", "02-extract", "03-demonstrations")
    }
    assert (
        pq.read_table(tmp_path / "run/stages/03-demonstrations/one/f00001-00000.parquet")["text"][0].as_py()[:5]
        == "Other"
    )
    (tmp_path / "b.txt").unlink()
    assert made(one).keys() == before.keys() - changed | {name for name in after if "/two/" in name}
    (tmp_path / "d.txt").write_text("Text of d.")
    assert made(two, ("one", f"{tmp_path}/[ad].txt")).keys() == after.keys()


def test_a_classifier_is_not_trained_for_documents_that_are_not_there(raw, tmp_path):
    sources = (("web", f"{raw}/web0.jsonl", "votes=karma"), ("good", f"{raw}/web1.jsonl"))
    own = {"only": (("quality", "web"),), "quality__positives": ("good",), "votes__least": 100.0, "exact__order": ()}
    made = build(config(raw, tmp_path, **own, sources=sources, stages=("read", "votes", "extract", "quality")))
    assert counts(made, "votes", "web") == (10, 0) and counts(made, "quality", "web") == (0, 0)
    (part,) = made.parts["good"]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{part} is no whole Parquet file .*; delete it"):
        build(config(raw, tmp_path, **own, sources=sources, stages=("read", "votes", "extract", "exact")))


SHORT = ("read", "extract", "exact", "tokens", "mixture")


def test_a_data_set_without_documents_is_left_out_and_what_is_lost_is_made_again(raw, tmp_path):
    (tmp_path / "empty.txt").touch()
    sources = (("web", f"{raw}/web0.jsonl"), ("none", f"{tmp_path}/empty.txt"))
    changes = {"sources": sources, "only": (), "stages": SHORT, "mixture__weights": (("web", 0.7), ("none", 0.3))}
    made = build(config(raw, tmp_path / "run", **changes))
    assert [(each.name, each.weight) for each in made.manifest.datasets] == [("web", 0.7)]
    before = content(tmp_path / "run")
    (part,) = (tmp_path / "run/stages/02-extract/web").glob("*.parquet")
    part.unlink()
    for path in (tmp_path / "run/tokens/web").iterdir():
        path.unlink()
    (tmp_path / "run/stages/01-read/raw/web/f00000-00000.parquet").unlink()
    build(config(raw, tmp_path / "run", **changes))
    assert content(tmp_path / "run") == before
    with pytest.raises(ValueError, match="no document is left in any data set"):
        build(
            config(
                raw, tmp_path / "run", **changes | {"sources": sources[1:], "mixture__weights": (), "exact__order": ()}
            )
        )


def test_items_that_change_are_searched_again_and_no_document_is_no_work(raw, tmp_path):
    """A data set without documents alone goes through all stages; with another one, what is cut follows the items."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "own.toml").write_text(TASK.replace('["no", "yes"]', '"options"'))
    own = {"only": (), "exact__order": (), "fuzzy__order": ()}
    own |= {"decontaminate__tasks": str(tmp_path / "own.toml"), "decontaminate__data": str(tmp_path)}
    none = ("none", f"{tmp_path}/empty.txt")

    def cut(stages, *sources):
        found = build(config(raw, tmp_path / "run", **own, stages=stages, sources=sources))
        return [counts(found, "decontaminate", "none"), *(pq.read_table(part) for part in found.parts.get("web", ()))]

    for number in (0, 2):
        item = {"question": " ".join(sentences(number)), "options": ["a", "b"], "answer": 1}
        (tmp_path / "own.jsonl").write_text(json.dumps(item) + "\n")
        if not number:
            assert cut(("read", "extract", "exact", "fuzzy", "decontaminate"), none) == [(0, 0)]
        empty, table = cut(("read", "extract", "decontaminate"), none, ("web", f"{raw}/web0.jsonl"))
        assert empty == (0, 0)
        assert {f"c{each}" for each in range(0, 20, 2)} - {*table["id"].to_pylist()} == {f"c{number}"}
