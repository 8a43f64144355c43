"""Records of prompts in all shapes, and those that cannot be used."""

import json

import pytest

from scaling.data.chat import prompts
from scaling.data.chat.dialogues import Skipped

USER = {"role": "user", "content": "q"}
SHAPES = {
    "prompt": ({"prompt": "q", "answer": 3}, ["q"]),
    "instruction": ({"instruction": "q"}, ["q"]),
    "input": ({"instruction": "q", "input": "more"}, ["q\n\nmore"]),
    "messages": ({"messages": [USER, {"role": "assistant", "content": "a"}, USER]}, ["q", "a", "q"]),
    "conversations": ({"conversations": [{"from": "human", "value": "q"}]}, ["q"]),
}


def write(tmp_path, *records):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path / "p.jsonl")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_record(tmp_path, shape):
    record, contents = SHAPES[shape]
    (found,) = prompts.read(write(tmp_path, record), Skipped(refuses=True))
    assert [message["content"] for message in found.messages] == contents and found.messages[-1]["role"] == "user"
    assert found.record == record and found.where.endswith("p.jsonl:1")


def test_a_system_message_is_for_prompts_that_have_none(tmp_path):
    own = {"messages": [{"role": "system", "content": "mine"}, USER]}
    found = prompts.read(write(tmp_path, {"prompt": "q"}, own), Skipped(refuses=True), "be kind")
    assert [prompt.messages[0]["content"] for prompt in found] == ["be kind", "mine"]


FAULTY = {
    "last message is not the user's": {"messages": [USER, {"role": "assistant", "content": "a"}]},
    "answer nothing": {"messages": [{"role": "assistant", "content": "a"}, USER]},
    "the first, and the only one": {"messages": [USER, {"role": "system", "content": "s"}, USER]},
    "a prompt is empty": {"prompt": " "},
    "a response is empty": {"messages": [USER, {"role": "assistant", "content": ""}, USER]},
    "the role 'boss' is none of": {"messages": [{"role": "boss", "content": "a"}]},
    "list of messages is empty": {"messages": []},
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_records_are_refused_or_skipped_and_counted(tmp_path, fault):
    path = write(tmp_path, {"prompt": "q"}, FAULTY[fault])
    with pytest.raises(ValueError, match=rf"p\.jsonl:2: .*{fault}.*; mend it, or set --bad_records=skip"):
        list(prompts.read(path, Skipped(True, "--bad_records=skip")))
    skipped = Skipped(refuses=False)
    assert len(list(prompts.read(path, skipped))) == 1 and sum(skipped.counts.values()) == 1


@pytest.mark.parametrize(
    ("record", "words"),
    [({"text": "q"}, r"p\.jsonl:1: .*its keys are text"), ({"prompt": 3}, "'prompt' must be text"), ([], "an object")],
)
def test_other_records_are_refused(tmp_path, record, words):
    with pytest.raises(ValueError, match=words):
        list(prompts.read(write(tmp_path, record), Skipped(refuses=False)))


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no prompt in it can be used"):
        list(prompts.read(write(tmp_path, {"prompt": ""}), Skipped(refuses=False)))
    with pytest.raises(FileNotFoundError):
        list(prompts.read(str(tmp_path / "absent.jsonl"), Skipped(refuses=False)))
