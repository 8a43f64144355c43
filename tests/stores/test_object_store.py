"""Paths, preconditions, faults and locks of object stores, against emulators behind a proxy."""

import asyncio
import gc
import json
import sys
import threading
import time

import pytest
from etils import epath

from scaling import background, cli, durable, exit_codes, object_store
from scaling.config.schema import Data
from scaling.data import loader, sources
from scaling.data.tokenizer import load
from scaling.runs import orbax_stores, store_lock
from scaling.runs.json_lines import JsonLines, append, last_record, read_lines
from scaling.runs.lock import is_locked, only_one
from scaling.runs.paths import absolute
from scaling.runs.run_directory import read_ahead
from tests.stores.proxy import FAULTS, Plan
from tests.token_records import make

pytestmark = pytest.mark.fast


def test_folders_are_the_beginnings_of_names(url):
    root = epath.Path(url)
    assert not root.exists() and not root.is_dir()
    for name in ("a/b.json", "a/c.json", "d.txt", "a-b/e"):
        (root / name).write_text(f"é {name}\n")
    assert (root / "a/b.json").read_text() == "é a/b.json\n"
    assert root.is_dir() and not root.is_file() and (root / "d.txt").is_file() and not (root / "d").exists()
    assert sorted(path.name for path in root.iterdir()) == ["a", "a-b", "d.txt"]
    assert [path.name for path in (root / "a").glob("*.json")] == ["b.json", "c.json"]
    assert [str(path) for path in root.glob("*/e")] == [f"{url}/a-b/e"]
    walked = {str(folder): (sorted(folders), files) for folder, folders, files in root.walk()}
    assert walked == {url: (["a", "a-b"], ["d.txt"]), f"{url}/a": ([], ["b.json", "c.json"]), f"{url}/a-b": ([], ["e"])}
    (root / "a").rename(root / "z")
    assert root.names() == ["a-b/e", "d.txt", "z/b.json", "z/c.json"]
    (root / "z").rmtree()
    (root / "d.txt").unlink()
    assert root.names() == ["a-b/e"]
    missing = root / "no"
    for read in (missing.read_text, missing.unlink, lambda: list(missing.iterdir())):
        with pytest.raises(FileNotFoundError):
            read()


def test_a_file_is_put_when_it_is_closed_and_not_after_an_error(url):
    path = epath.Path(url) / "x"
    with pytest.raises(RuntimeError), path.open("w") as file:
        file.write("half")
        raise RuntimeError
    assert not path.exists()
    with path.open("w") as file:
        file.write("whole")
    assert path.read_text() == "whole"
    with pytest.raises(OSError, match="replaced"):
        path.open("a")
    assert sources.read_bytes(f"{url}/x") == b"whole"  # needs no package of fsspec's


def test_a_small_file_is_replaced_by_one_put(store, url):
    for synced in (False, True):
        store.reset_counts()
        durable.replace_text(f"{url}/config.json", "{}", synced=synced)
        assert store.counts.total() == 1
    assert epath.Path(url).names() == ["config.json"]


def test_of_many_writers_with_the_same_generation_one_wins(url):
    _, generation = object_store.read(f"{url}/x")
    won = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(object_store.write(f"{url}/x", str(n).encode(), generation)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new is not None for new in won) == 1
    content, now = object_store.read(f"{url}/x")
    assert object_store.write(f"{url}/x", b"next", now) and not object_store.write(f"{url}/x", b"late", now)
    assert object_store.read(f"{url}/x")[0] == b"next" and content != b"next"


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_survived(store, url, kind):
    store.plan(Plan(share=1.0, most=2, kinds=(kind,), stall=0.5))
    path = epath.Path(url) / "x"
    path.write_bytes(b"x" * 1000)
    assert path.read_bytes() == b"x" * 1000 and store.spoiled.total() == 2


def test_a_store_that_is_gone_is_given_up_once(store, url):
    object_store.set_patience(4.0)
    store.gone = True
    start = time.monotonic()
    with pytest.raises(OSError, match="does not answer") as found:
        epath.Path(f"{url}/x").write_text("1")
    assert found.value.filename == f"{url}/x" and 0.5 < time.monotonic() - start < 6.0
    start = time.monotonic()
    for _ in range(3):  # what ends the process does not wait again
        with pytest.raises(OSError, match="does not answer"):
            epath.Path(f"{url}/x").read_text()
    assert time.monotonic() - start < 0.5


def test_refusals_are_sentences_without_a_second_try(store, url):
    for status, sentence in ((401, "credentials"), (403, "permit")):
        store.status = status
        store.reset_counts()
        with pytest.raises(PermissionError, match=sentence) as found:
            epath.Path(f"{url}/x").write_text("1")
        assert found.value.filename == f"{url}/x" and store.counts.total() <= 3
    store.status = 0
    with pytest.raises(FileNotFoundError, match="bucket"):
        epath.Path(f"{store.scheme}://no-such-bucket/x").write_text("1")
    with pytest.raises(ValueError, match="names no bucket"):
        object_store.read(f"{store.scheme}:///x")
    with pytest.raises(ValueError, match="cannot be a bucket"):
        epath.Path(f"{store.scheme}://B_/x").exists()


def test_other_stores_and_mistyped_paths_are_refused(capsys):
    for path in ("gcs://bucket/run", "GS://bucket/run", "az://bucket/run"):
        for arguments in (
            ["status", path],
            ["train", "--config=cpu/smoke", f"--config.workdir={path}"],
            ["generate", path, "--prompt=x"],
        ):
            assert cli.main(arguments) == exit_codes.USAGE
            assert "use gs://BUCKET/FOLDER or s3://BUCKET/FOLDER" in capsys.readouterr().err
    for path in ("gs:/bucket/run", "s3:bucket"):
        with pytest.raises(ValueError, match="two slashes"):
            absolute(path)


def test_lines_are_put_by_settle_and_survive_a_writer_beside(store, url):
    path = epath.Path(url) / "evals.jsonl"
    lines = JsonLines(path, lambda record: False)
    lines.write({"step": 1})
    assert not path.exists()
    background.settle()
    assert read_lines(path) == [{"step": 1}]
    append(path, [{"step": 1, "task": "t"}])  # as `scaling evaluate` does
    lines.write({"step": 2, "loss": 1.0})
    store.plan(Plan(share=1.0, most=1, kinds=("reset after",)))  # the put is done, its answer is lost
    lines.close()
    assert read_lines(path) == [{"step": 1}, {"step": 1, "task": "t"}, {"step": 2, "loss": 1.0}]
    assert last_record(path, "loss") == {"step": 2, "loss": 1.0} and last_record(path, "none") is None
    JsonLines(path, lambda record: record["step"] > 1).close()
    assert read_lines(path) == [{"step": 1}, {"step": 1, "task": "t"}]


def test_an_error_in_the_background_is_raised_by_settle(store, url):
    object_store.set_patience(2.0)
    store.gone = True
    durable.replace_text_later(f"{url}/x", "1")
    with pytest.raises(OSError, match="does not answer"):
        background.settle()
    store.gone = False
    object_store.set_patience(60.0)
    durable.replace_text_later(f"{url}/x", "2")
    background.settle()
    assert epath.Path(f"{url}/x").read_text() == "2"


def test_a_put_that_failed_or_was_never_closed_is_not_done_by_the_garbage_collector(store, url):
    path = epath.Path(f"{url}/x")
    path.write_text("1")
    object_store.set_patience(2.0)
    store.status = 403
    for write in (path.write_text, lambda text: path.write_bytes(text.encode())):
        with pytest.raises(PermissionError):
            write("2")
    file = path.open("w")
    with pytest.raises(PermissionError), file:
        file.write("3")
    store.status = 0
    for mode, content in (("w", "4"), ("wb", b"5")):
        unclosed = path.open(mode)
        unclosed.write(content)
        del unclosed
    del file
    gc.collect()
    assert path.read_text() == "1"


def test_a_write_that_outlives_its_event_loop_prints_nothing(store, url, monkeypatch):
    printed = []
    monkeypatch.setattr(orbax_stores, "_print_unraisable", printed.append)
    monkeypatch.setattr(sys, "unraisablehook", None)
    orbax_stores.install()
    store.delay = 0.3

    async def wait():
        await object_store._opened(url)[0].read("x")

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    time.sleep(1.0)
    assert not task.done() and not printed
    task._log_destroy_pending = False

    class Failing:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    Failing()
    assert len(printed) == 1  # any other is printed as always


@pytest.mark.parametrize(("file", "lines"), [("/lib/orbax/save.py", 0), ("/lib/others.py", 1)])
def test_what_orbax_forgot_is_not_printed_beside_its_error(caplog, file, lines):
    orbax_stores.install()
    names = {}
    exec(compile("async def fail(): raise OSError", file, "exec"), names)

    async def forget():
        task = asyncio.create_task(names["fail"]())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert task.done()

    asyncio.run(forget())
    gc.collect()
    assert len(caplog.records) == lines


@pytest.fixture
def quick_lock(monkeypatch):
    monkeypatch.setattr(store_lock, "BEAT", 0.2)
    monkeypatch.setattr(store_lock, "LEASE", 1.5)
    monkeypatch.setattr(store_lock, "_POLL", 0.05)


def test_a_second_run_is_refused_and_the_lock_is_given_back(url, quick_lock, monkeypatch):
    monkeypatch.setattr(store_lock, "LEASE", 30.0)
    root = epath.Path(url)
    with only_one(root):
        assert is_locked(root)
        with pytest.raises(ValueError, match=r"another process is training in .*process \d+ on"), only_one(root):
            pass
    assert not is_locked(root) and not (root / ".lock").exists()
    with only_one(root):
        pass


def test_the_lock_of_a_killed_run_is_taken_over(url, quick_lock, monkeypatch):
    path = epath.Path(url) / ".lock"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1, "until": time.time() + 60}))
    start = time.monotonic()
    with store_lock.held(path, "busy"):  # on another machine: after it was silent for the lease
        assert time.monotonic() - start > store_lock.LEASE
    dead = store_lock._process(1) | {"pid": 2**22 + 1, "started": "1", "token": "x", "machine": None}
    dead["machine"] = store_lock._process(1)["machine"]
    path.write_text(json.dumps(dead))
    start = time.monotonic()
    with store_lock.held(path, "busy"):  # on this one: at once
        assert time.monotonic() - start < store_lock.LEASE / 2


def test_a_holder_that_was_silent_ends_when_another_has_the_lock(url, quick_lock, monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda code: ended.set())
    path = epath.Path(url) / ".lock"
    with store_lock.held(path, "busy"):
        path.write_text('{"token": "of another"}')
        assert ended.wait(5)
    assert "taken over" in capsys.readouterr().err and path.exists()


def test_a_beat_whose_answer_is_lost_keeps_the_lock(store, url, quick_lock, monkeypatch):
    monkeypatch.setattr("os._exit", lambda code: pytest.fail("it ended"))
    with store_lock.held(epath.Path(url) / ".lock", "busy"):
        store.plan(Plan(share=1.0, most=1, kinds=("reset after",)))
        time.sleep(1.5)
        assert store.spoiled.total() == 1


def test_a_snapshot_answers_without_requests(store, url):
    for run in range(3):
        for name in ("config.json", "metrics.jsonl", "checkpoints/000000010/meta.json"):
            (epath.Path(url) / f"run{run}" / name).write_text(f"{run} {name}")
    with read_ahead([url, "/not/remote"]):
        store.reset_counts()
        runs = sorted(epath.Path(url).iterdir())
        assert [(run / "config.json").read_text() for run in runs] == [f"{n} config.json" for n in range(3)]
        assert (runs[0] / "checkpoints/000000010").is_dir() and not (runs[0] / "evals.jsonl").exists()
        assert store.counts.total() == 0
        assert (runs[0] / "checkpoints/000000010/meta.json").read_text() == "0 checkpoints/000000010/meta.json"
        assert store.counts.total() == 1  # what the snapshot does not hold is asked for


def test_a_large_object_is_streamed_in_pieces(store, url, monkeypatch):
    monkeypatch.setattr(object_store, "_PIECE", 1000)
    content = bytes(range(256)) * 40
    path = epath.Path(url) / "shard"
    path.write_bytes(content)
    store.plan(Plan(share=0.5, most=3, kinds=("503", "truncated")))
    pieces = list(object_store.stream(path, len(content)))
    assert b"".join(pieces) == content and len(pieces) == 11 and store.spoiled.total() == 3
    with pytest.raises(FileNotFoundError):
        list(object_store.stream(f"{url}/none", 10))
    with pytest.raises(OSError):
        list(object_store.stream(path, len(content) + 1))


def test_token_shards_are_trained_on_from_a_store(url, tmp_path):
    make(tmp_path / "tokens", 64, vocab=64)
    for file in (tmp_path / "tokens").iterdir():
        (epath.Path(url) / file.name).write_bytes(file.read_bytes())
    there, here = (
        loader.training_set(
            Data(train=str(train), tokenizer="bytes", cache_dir=str(tmp_path / "cache")), load("bytes"), 16, 0
        )
        for train in (url, tmp_path / "tokens")
    )
    assert there.fingerprint == here.fingerprint and (there[5] == here[5]).all()
