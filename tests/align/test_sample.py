"""``scaling align sample``: the best of a model's answers as data, and a file that goes on where it was interrupted."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from scaling import cli, exit_codes
from scaling.data.chat import comparisons, dialogues
from scaling.data.chat.dialogues import Skipped
from scaling.generate.answers import Answers
from tests.programs import environment

pytestmark = pytest.mark.slow  # all read answers of the run that talks

PROMPTS = [{"prompt": f"{letter}{i}", "wanted": letter} for i in range(6) for letter in "ab"]
REWARD = """
import numpy as np
def wanted(records, answers):
    return [answer.count(record["wanted"]) - len(answer) / 10 for record, answer in zip(records, answers)]
def same(records, answers):
    return [float(record["prompt"] == "b3") * len(answer) for record, answer in zip(records, answers)]
def noise(records, answers):
    return np.random.default_rng().normal(size=len(answers))
def nan_at_last(records, answers):
    return [float("nan") if record["prompt"] == "b5" else 1 for record in records]
"""


@pytest.fixture(scope="module", autouse=True)
def files(folder, talker):
    (folder / "mine.py").write_text(REWARD)
    folder.write("asked.jsonl", PROMPTS)


def sample(folder, out, *arguments, reward="wanted"):
    options = [f"--prompts={folder}/asked.jsonl", f"--reward={folder}/mine.py:{reward}", f"--out={folder}/{out}"]
    fast = ["--tokens=6", "--samples=4", "--batch_size=8"]
    return cli.main(["align", "sample", str(folder / "talker"), *options, *fast, *arguments])


@pytest.fixture(scope="module")
def best(folder):
    """The lines of a file of the best answers."""
    assert sample(folder, "best.jsonl") == 0
    return folder.lines(".", "best.jsonl")


def test_the_best_answers_are_dialogues_that_sft_reads(folder, best, capsys):
    found = list(dialogues.read(f"{folder}/best.jsonl", Skipped(refuses=True)))
    assert len(found) == len(best) and [record["number"] for record in best] == sorted({r["number"] for r in best})
    for record in best:
        prompt, answer = (message["content"] for message in record["messages"])
        expected = PROMPTS[record["number"]]
        assert prompt == expected["prompt"]
        assert answer.count(expected["wanted"]) - len(answer) / 10 == pytest.approx(max(record["rewards"]), abs=1e-6)
        assert 1 <= len(record["rewards"]) <= 4
    assert len(best) >= 8


def test_pairs_are_the_best_and_the_worst_that_a_reward_model_reads(folder, best):
    assert sample(folder, "pairs.jsonl", "--worst") == 0
    records = folder.lines(".", "pairs.jsonl")
    read = list(comparisons.read(f"{folder}/pairs.jsonl", Skipped(refuses=True), 2))
    assert len(read) == len(records) >= 5
    chosen = {record["number"]: record["messages"][-1]["content"] for record in best}
    for record, comparison in zip(records, read, strict=True):
        letter = PROMPTS[record["number"]]["wanted"]
        scores = [text.count(letter) - len(text) / 10 for text in (record["chosen"], record["rejected"])]
        assert scores == pytest.approx([max(record["rewards"]), min(record["rewards"])], abs=1e-6)
        assert scores[0] > scores[1] and record["chosen"] == chosen[record["number"]]
        assert [answer[-1]["content"] for answer in comparison.answers] == [record["chosen"], record["rejected"]]


def test_prompts_whose_answers_are_all_equally_good_make_no_pair_aloud_and_counted(folder, capsys, caplog):
    assert sample(folder, "ties.jsonl", "--worst", reward="same") == 0
    records = folder.lines(".", "ties.jsonl")
    assert [PROMPTS[record["number"]]["prompt"] for record in records] == ["b3"]
    assert "1 prompts, 11 left out" in capsys.readouterr().out
    assert "asked.jsonl:1: left out: all answers have the same reward" in caplog.text


def test_a_half_written_last_line_is_dropped_and_the_rest_is_not_done_again(folder, best, monkeypatch, capsys):
    whole = (folder / "best.jsonl").read_text().splitlines(keepends=True)
    asked, call = [], Answers.__call__
    monkeypatch.setattr(Answers, "__call__", lambda self, prompts, n: asked.extend(n) or call(self, prompts, n))
    for name, kept in (("torn.jsonl", "".join(whole[:5]) + whole[5][:30]), ("ended.jsonl", "".join(whole[:5]))):
        (folder / name).write_text(kept)
        (folder / f"{name}.settings.json").write_text((folder / "best.jsonl.settings.json").read_text())
        asked.clear()
        assert sample(folder, name) == 0
        assert asked == list(range(best[4]["number"] + 1, len(PROMPTS)))
        assert (folder / name).read_text().splitlines(keepends=True) == whole


def test_answers_that_were_cut_are_no_candidates(folder, best, capsys):
    assert any(len(record["messages"][-1]["content"]) > 1 for record in best)
    assert sample(folder, "cut.jsonl", "--tokens=2") == 0  # a letter and the end of turn
    records = folder.lines(".", "cut.jsonl")
    assert records and all(len(record["messages"][-1]["content"]) == 1 for record in records)
    assert sum(len(record["rewards"]) for record in records) < 4 * len(PROMPTS)
    assert re.search(r"; [1-9]\d% of the answers were cut at --tokens=2", capsys.readouterr().out)


def test_equal_answers_have_one_reward_and_make_no_pair(folder):
    assert sample(folder, "noise.jsonl", "--worst", "--samples=16", reward="noise") == 0
    records = folder.lines(".", "noise.jsonl")
    assert records and all(record["chosen"] != record["rejected"] for record in records)
    assert any(len(set(record["rewards"])) < len(record["rewards"]) for record in records)


def test_a_sampling_that_is_killed_goes_on_to_the_same_file(folder, best):
    folder.write("many.jsonl", PROMPTS * 15)
    words = [sys.executable, "-m", "scaling", "align", "sample", str(folder / "talker"), "--tokens=6", "--samples=4"]
    words += ["--batch_size=2", f"--reward={folder}/mine.py:wanted", f"--prompts={folder}/many.jsonl"]
    variables = environment() | {"JAX_PLATFORMS": "cpu"}
    killed = folder / "killed.jsonl"
    process = subprocess.Popen([*words, f"--out={killed}"], env=variables)
    while process.poll() is None and (not killed.exists() or killed.read_text().count("\n") < 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = killed.read_text().count("\n")
    for out in (killed, folder / "through.jsonl"):
        assert subprocess.run([*words, f"--out={out}"], env=variables).returncode == 0
    assert killed.read_text() == (folder / "through.jsonl").read_text()
    assert 20 <= before < killed.read_text().count("\n")


def test_what_was_written_before_a_mistake_of_a_reward_stays(folder, capsys):
    assert sample(folder, "part.jsonl", reward="nan_at_last") == exit_codes.USAGE
    assert "asked.jsonl:12: the reward of an answer" in capsys.readouterr().err
    assert len(folder.lines(".", "part.jsonl")) >= 6


def test_a_finished_file_stays_as_it_is(folder, best, capsys):
    before = (folder / "best.jsonl").read_text()
    assert sample(folder, "best.jsonl") == 0
    assert (folder / "best.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("wrong", "arguments"),
    [
        ("was made with samples=4, and now it is 3", ["--samples=3"]),
        ("was made with temperature=1.0", ["--temperature=0.5"]),
        ("was made with worst=False", ["--worst"]),
        ("was made with reward=", ["--reward=exact_match"]),
        ("answers a prompt that is not among these", ["--prompts=DIR/others.jsonl"]),
        ("no verb that reads prompts made it", ["--out=DIR/others.jsonl"]),
        ("name ends in .jsonl", ["--out=DIR/x.json"]),
        ("--samples=1 must be 2", ["--samples=1", "--worst"]),
        ("--samples=0 must be 1", ["--samples=0"]),
        ("greedy answers", ["--temperature=0"]),
        ("no reward absent", ["--reward=absent"]),
        ("faulty.jsonl:2: a prompt is empty; mend it, or set --bad_records=skip", ["--prompts=DIR/faulty.jsonl"]),
        ("long.jsonl:2: it leaves no room", ["--prompts=DIR/long.jsonl", "--out=DIR/new.jsonl"]),
        ("has answers to learn from; 100% of them were cut", ["--tokens=1", "--out=DIR/new.jsonl"]),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(folder, best, wrong, arguments, capsys):
    folder.write("others.jsonl", [{"prompt": "x"}] * 12)
    folder.write("faulty.jsonl", [{"prompt": "q"}, {"prompt": " "}])
    folder.write("long.jsonl", [{"prompt": "q"}, {"prompt": "x" * 40}])
    before = (folder / "best.jsonl").read_text()
    given = [argument.replace("DIR", str(folder)) for argument in arguments]
    assert sample(folder, "best.jsonl", *given) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err
    assert (folder / "best.jsonl").read_text() == before


def test_prompts_that_cannot_be_answered_are_skipped_aloud_if_the_user_says_so(folder, caplog):
    path = folder.write("some.jsonl", [{"prompt": "a0", "wanted": "a"}, {"prompt": ""}, {"prompt": "x" * 40}])
    assert sample(folder, "some_best.jsonl", f"--prompts={path}", "--bad_records=skip") == 0
    assert "some.jsonl:2: a prompt is empty" in caplog.text and "some.jsonl:3: it leaves no room" in caplog.text
    assert [json.loads(line)["number"] for line in (folder / "some_best.jsonl").read_text().splitlines()] == [0]
