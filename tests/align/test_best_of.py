"""``scaling generate --best_of``: the best of N texts by a reward; prompts that are framed as in a conversation."""

import io
import json

import pytest

from scaling import cli, exit_codes

LETTERS = """
def letters(records, answers):
    assert all(record["prompt"] for record in records)
    return [answer.count("a") - answer.count("b") for answer in answers]
"""


@pytest.fixture(scope="module", autouse=True)
def letters(folder):
    (folder / "mine.py").write_text(LETTERS)
    return f"--reward={folder}/mine.py:letters"


def generate(capsys, *arguments):
    assert cli.main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def records(capsys, *arguments):
    return [json.loads(line) for line in generate(capsys, *arguments, "--json").splitlines()]


@pytest.mark.slow
def test_the_best_by_the_reward_is_printed(folder, talker, letters, capsys):
    chat = [talker, "--chat", "--prompt=q", "--prompt=r", "--tokens=8", "--best_of=6", letters]
    found = records(capsys, *chat)
    assert [(each["number"], each["sample"]) for each in found] == [(n, s) for n in (0, 1) for s in range(6)]
    best = []
    for number, text in enumerate("qr"):
        mine = [each for each in found if each["number"] == number]
        assert all(each["messages"] == [{"role": "user", "content": text}] for each in mine)
        assert all(each["reward"] == each["text"].count("a") - each["text"].count("b") for each in mine)
        (chosen,) = [each for each in mine if each["best"]]
        assert chosen["reward"] == max(each["reward"] for each in mine) > min(each["reward"] for each in mine)
        best.append(chosen["text"])
    assert generate(capsys, *chat) == f"{best[0]}\n\n{best[1]}\n\n"


@pytest.mark.slow
def test_samples_are_those_without_a_reward(folder, talker, letters, capsys):
    plain = ["--chat", "--prompt=q", "--tokens=8"]
    drawn = records(capsys, talker, *plain, "--num_samples=3")
    rated = records(capsys, talker, *plain, "--best_of=3", letters)
    assert [each["ids"] for each in rated] == [each["ids"] for each in drawn]


def test_a_text_that_is_no_dialogue_is_continued_and_its_record_reaches_the_reward(folder, letters, capsys):
    path = folder.write("texts.jsonl", [{"prompt": "ab", "answer": "x"}])
    (folder / "own.py").write_text("def own(records, answers):\n    return [len(r['answer']) for r in records]\n")
    short = [folder / "base", "--tokens=4", "--best_of=2"]
    found = records(capsys, *short, f"--prompts={path}", f"--reward={folder}/own.py:own")
    assert [(each["prompt"], each["reward"], each["best"]) for each in found] == [("ab", 1, True), ("ab", 1, False)]
    assert generate(capsys, *short, "--prompt=ab", letters).startswith("ab")


@pytest.mark.slow
def test_an_answer_is_that_of_a_conversation(folder, talker, capsys, monkeypatch):
    greedy = ["--tokens=8", "--temperature=0"]
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert cli.main(["chat", str(talker), "--system=s", *greedy]) == 0
    said = capsys.readouterr().out
    assert generate(capsys, talker, "--chat", "--system=s", "--prompt=q", *greedy) == said
    (found,) = records(capsys, talker, "--chat", "--system=s", "--prompt=q", *greedy)
    assert found["text"] + "\n" == said and found["finish"] == "end"
    assert [message["role"] for message in found["messages"]] == ["system", "user"]
    path = folder.write("dialogue.jsonl", [{"messages": found["messages"]}])
    assert generate(capsys, talker, "--chat", f"--prompts={path}", *greedy) == said


@pytest.mark.parametrize(
    ("wrong", "arguments"),
    [
        ("belong together", ["--best_of=2"]),
        ("belong together", ["--reward=exact_match"]),
        ("--best_of=0 must be", ["--best_of=0", "--reward=exact_match"]),
        ("leave out --num_samples", ["--best_of=2", "--num_samples=2", "--reward=exact_match"]),
        ("leave out --num_samples and --beams", ["--best_of=2", "--beams=2", "--reward=exact_match"]),
        ("greedy texts are all the same", ["--best_of=2", "--temperature=0", "--reward=exact_match"]),
        ("no reward absent", ["--best_of=2", "--reward=absent"]),
        ('"answer"', ["--best_of=2", "--tokens=2", "--reward=exact_match"]),
        ("give --chat", ["--system=s"]),
        ("exclude each other", ["--chat", "--control=c"]),
        ("has no chat template", ["--chat"]),
    ],
)
def test_mistakes_are_one_sentence(folder, wrong, arguments, capsys):
    assert cli.main(["generate", str(folder / "base"), "--prompt=q", *arguments]) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "x" * 40}, "d.jsonl:2: the message has"),
        ({"prompt": " "}, "d.jsonl:2: a prompt is empty; mend it\n"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_named(folder, talker, record, words, capsys):
    path = folder.write("d.jsonl", [{"prompt": "q"}, record])
    assert cli.main(["generate", str(talker), "--chat", f"--prompts={path}", "--tokens=4"]) == exit_codes.USAGE
    assert words in capsys.readouterr().err
