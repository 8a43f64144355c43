"""The experiment in in-context learning: its documents and its tasks fit each other, and tests are held out."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest

from scaling.data.tokenizer import load as load_tokenizer
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.prompts import Room, build_requests

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "experiments/in_context/tasks/code_books.toml"
NAMES = ("train", "validation", "test", "demonstrations")


def _load(path):
    spec = importlib.util.spec_from_file_location("in_context_documents", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


documents = _load(ROOT / "experiments/in_context/documents.py")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("in_context")
    documents.write(path, train=2000, seed=3)
    return path


def _records(directory, name):
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def _examples(record):
    """The strings and codes of a document; the code book that they show, as far as they show it."""
    pairs = [line.split(" ") for line in record["text"].split("\n")]
    book = {letter: code for string, codes in pairs for letter, code in zip(string, codes, strict=True)}
    return pairs, book


def test_training_documents_show_no_held_out_string(directory):
    shown = {string for record in _records(directory, "train") for string, _ in _examples(record)[0]}
    held_out = {record["string"] for record in _records(directory, "test")}
    demonstrations = {record["string"] for record in _records(directory, "demonstrations")}
    assert len(held_out) == 100
    assert shown == demonstrations == set(documents.all_strings()) - held_out
    # Nor across the boundaries of examples, or in any other place.
    text = "\n".join(record["text"] for record in _records(directory, "train"))
    assert not any(string in text for string in held_out)
    assert {s for record in _records(directory, "validation") for s, _ in _examples(record)[0]} == held_out


def test_training_documents_show_no_held_out_code_book(directory):
    held_out = documents.split(3).held_out_books
    assert len(held_out) == len({tuple(book.items()) for book in held_out}) == 20
    for record in _records(directory, "train"):
        _, book = _examples(record)
        assert len(book) < 8 or book not in held_out
    # Whole books are shown, so the line above compares something.
    assert sum(len(_examples(record)[1]) == 8 for record in _records(directory, "train")) > 1900
    for name in ("test", "demonstrations"):
        for record in _records(directory, name):
            string = record.pop("string")
            assert list(record.values()) == [documents.encode(book, string) for book in held_out]


def test_a_document_fills_a_sequence_and_keeps_to_one_code_book(directory):
    for record in itertools.chain(_records(directory, "train"), _records(directory, "validation")):
        assert len(load_tokenizer("bytes").encode(record["text"])) == 127
        pairs, book = _examples(record)
        assert len({string for string, _ in pairs}) == 16
        assert all(code == documents.encode(book, string) for string, code in pairs)


def test_no_two_letters_share_a_code():
    codes = {letter: {book[letter] for book in documents.all_books()} for letter in documents.ALPHABET}
    assert all(len(found) == 3 for found in codes.values())
    assert len(set.union(*codes.values())) == 24
    assert len({tuple(book.items()) for book in documents.all_books()}) == 3**8
    assert (codes["a"], codes["h"]) == ({"A", "I", "Q"}, {"H", "P", "X"})


def test_prompts_have_the_form_of_the_documents(directory):
    tasks = find_tasks(str(TASKS))
    assert [task.name for task in tasks] == [f"book_{n:02}" for n in range(20)]
    for task, book in zip(tasks, documents.split(3).held_out_books, strict=True):
        for shots, examples in ((0, 1), (1, 2), ("few", 16)):
            requests = build_requests(task, shots, data=directory, room=Room(load_tokenizer("bytes"), 128), limit=20)
            assert requests.notes == () and len(requests.items) == 20
            for request in requests.items:
                (option,) = request.options
                pairs, _ = _examples({"text": option.context + option.completion})
                assert len(pairs) == examples
                assert all(code == documents.encode(book, string) for string, code in pairs)


def test_the_seed_decides_the_files(directory, tmp_path):
    documents.write(tmp_path / "same", train=2000, seed=3)
    documents.write(tmp_path / "other", train=2000, seed=4)
    for name in NAMES:
        made = (directory / f"{name}.jsonl").read_text()
        assert (tmp_path / "same" / f"{name}.jsonl").read_text() == made
        assert (tmp_path / "other" / f"{name}.jsonl").read_text() != made
