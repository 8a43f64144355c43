"""Records of dialogues, and the rows that they are packed into."""

import json

import numpy as np
import pytest

from scaling.data import tokenizer
from scaling.data.chat import dialogues, rows
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import Chat
from scaling.data.chat_tokenizer import SUFFIX


def said(role):
    return lambda text: {"role": role, "content": text}


ASSISTANT, USER, SYSTEM = said("assistant"), said("user"), said("system")


@pytest.fixture(scope="module")
def chat():
    return Chat(tokenizer.load(f"bytes{SUFFIX}"))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_every_shape_of_record(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        {"messages": [USER("q"), ASSISTANT("a")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": "x", "output": "a", "source": 3},
    )
    found = list(dialogues.read(path, Skipped(refuses=True)))
    assert [d.messages for d in found[:5]] == [(USER("q"), ASSISTANT("a"))] * 5
    assert found[5].messages == (USER("q\n\nx"), ASSISTANT("a"))
    assert found[2].where.endswith("d.jsonl:3")


def test_a_system_message_for_those_without(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "q", "response": "a"},
        {"messages": [SYSTEM("mine"), USER("q"), ASSISTANT("a")]},
    )
    found = [d.messages[0]["content"] for d in dialogues.read(path, Skipped(refuses=True), system="yours")]
    assert found == ["yours", "mine"]


FAULTY = {
    "no turn is the assistant's": [USER("q")],
    "not the assistant's": [USER("q"), ASSISTANT("a"), USER("q")],
    "follow one another": [USER("q"), ASSISTANT("a"), ASSISTANT("b")],
    "answer nothing": [SYSTEM("s"), ASSISTANT("a")],
    "response is empty": [USER("q"), ASSISTANT(" ")],
    "prompt is empty": [USER(""), ASSISTANT("a")],
    "none of system": [{"role": "boss", "content": "q"}, ASSISTANT("a")],
    "no text": [{"role": "user", "content": None}, ASSISTANT("a")],
    "must be the first": [USER("q"), SYSTEM("s"), ASSISTANT("a")],
    "is no object": ["q"],
    "empty or no list": [],
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_dialogues_are_refused_or_skipped_and_counted(tmp_path, fault):
    path = write(tmp_path / "d.jsonl", {"prompt": "q", "response": "a"}, {"messages": FAULTY[fault]})
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: .*{fault}"):
        list(dialogues.read(path, Skipped(refuses=True)))
    skipped = Skipped(refuses=False)
    assert len(list(dialogues.read(path, skipped))) == 1
    assert sum(skipped.counts.values()) == 1


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"text": "x"}', "its keys are text"),
        ("[1]", "an object"),
        ("{", "JSON"),
        ('{"prompt": 1, "response": "a"}', "text"),
    ],
)
def test_lines_that_are_no_record(tmp_path, line, wrong):
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "response": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"d\.jsonl:2.*{wrong}"):
        list(dialogues.read(str(tmp_path / "d.jsonl"), Skipped(refuses=False)))


def test_files_without_dialogues(tmp_path):
    (tmp_path / "d.txt").write_text("q")
    with pytest.raises(ValueError, match=r"must be a \.jsonl"):
        list(dialogues.read(str(tmp_path / "d.txt"), Skipped(refuses=True)))
    with pytest.raises(ValueError, match="no dialogue"):
        list(dialogues.read(write(tmp_path / "e.jsonl", {"messages": []}), Skipped(refuses=False)))


def test_packed_rows_hold_every_dialogue_whole_and_apart(chat):
    random = np.random.default_rng(0)
    room = 64
    written = [[USER("q" * random.integers(1, 9)), ASSISTANT("a" * random.integers(1, 30))] for _ in range(40)]
    texts = [rows.Text(*chat.example(messages)) for messages in written]
    found = rows.packed(texts, room)
    seen = []
    for row in found:
        for number in np.unique(row.segments):
            here = row.segments == number
            np.testing.assert_array_equal(row.positions[here], np.arange(here.sum()))
            if not row.weights[here].any():
                assert not row.tokens[here].any()
                continue
            ids = np.append(row.tokens[here], row.targets[here][-1])
            np.testing.assert_array_equal(row.targets[here][:-1], ids[1:-1])
            seen.append((ids.tolist(), row.weights[here].astype(bool).tolist()))
    assert sorted(seen) == sorted((text.ids.tolist(), text.counts[1:].tolist()) for text in texts)
    assert len(found) <= 1 + 1.2 * sum(text.slots for text in texts) / room


def test_a_long_dialogue_loses_its_oldest_turns_but_never_the_system_s(chat):
    messages = [SYSTEM("s"), USER("1"), ASSISTANT("one"), USER("2"), ASSISTANT("two"), USER("3"), ASSISTANT("three")]
    whole = rows.Text(*chat.example(messages)).slots
    text, lost = rows.fitting(messages, chat, whole)
    assert lost == 0 and text.slots == whole
    text, lost = rows.fitting(messages, chat, whole - 1)
    assert lost == 1
    assert chat.words.decode(text.ids) == (
        "<|endoftext|><|system|>s<|end|><|user|>2<|end|><|assistant|>two<|end|><|user|>3<|end|><|assistant|>three<|end|>"
    )
    assert rows.fitting(messages, chat, 5) == (None, 3)


def test_what_is_too_long_is_counted(chat):
    skipped = Skipped(refuses=True)
    long = dialogues.Dialogue((USER("q" * 50), ASSISTANT("a")), "f:1")
    two = dialogues.Dialogue((USER("q" * 9), ASSISTANT("a"), USER("q"), ASSISTANT("a")), "f:2")
    found = list(rows.texts([long, two], chat, 16, skipped, everything=False))
    assert len(found) == 1 and sorted(skipped.counts.values()) == [1, 1]
    (text,) = rows.texts([two], chat, 16, Skipped(refuses=True), everything=True)
    assert text.counts.all()
