"""``scaling align judge``: win rates by a reward and by a program, their interval, the part of length and of order."""

import gzip
import json
import re
import sys

import numpy as np
import pytest
import scipy.stats

from scaling import cli, exit_codes
from scaling.align import win_rate
from scaling.align.win_rate import Comparison
from tests.shared import SHARED, needs_shared

PROMPTS = [{"prompt": f"q{i}", "best": "a" if i % 2 else "b"} for i in range(8)]
OF_A = ["a", "a", "b", "a", "aa", "a", "bbb", "a"]
OF_B = ["b", "b", "a", "b", "b", "aaaa", "b", "a"]


@pytest.fixture(scope="module", autouse=True)
def files(folder):
    folder.write("asked.jsonl", PROMPTS)
    for name, texts in (("a", OF_A), ("b", OF_B)):
        records = [{"prompt": p["prompt"], "response": text} for p, text in zip(PROMPTS, texts, strict=True)]
        folder.write(f"{name}.jsonl", records[::-1])
    (folder / "mine.py").write_text(
        "def right(records, answers):\n"
        "    return [record['best'] in answer for record, answer in zip(records, answers)]\n"
        "def letters(records, answers):\n    return [answer.count('a') for answer in answers]\n"
        "def noise(records, answers):\n    return list(range(len(answers)))\n"
    )


def judge(folder, *arguments, a="a.jsonl", b="b.jsonl"):
    options = [f"--prompts={folder}/asked.jsonl", "--tokens=6", *arguments]
    return cli.main(["align", "judge", f"{folder}/{a}", f"{folder}/{b}", *options])


def judged(folder, capsys, *arguments, **sides):
    assert judge(folder, *arguments, "--json", **sides) == 0
    return json.loads(capsys.readouterr().out)


def program(folder, body):
    """The option of a judge whose function ``verdict(first, second, given)`` has this body."""
    (folder / "program.py").write_text(
        "import json, sys\ndef verdict(first, second, given):\n"
        f"    {body}\n"
        "for line in sys.stdin:\n"
        "    given = json.loads(line)\n"
        "    print(verdict(given['answer_1'], given['answer_2'], given))\n"
    )
    return f"--command={sys.executable} {folder}/program.py"


def test_the_higher_reward_wins_and_equal_ones_are_ties(folder, capsys):
    found = judged(folder, capsys, f"--reward={folder}/mine.py:right")
    # B is right in 0 and 5 too, A in 1, 2, 3, 5, 6, 7; 5, 6 and 7 are ties.
    won = [0, 1, 1, 1, 0, 0.5, 0.5, 0.5]
    assert (found["wins"], found["losses"], found["ties"]) == (3, 2, 3)
    assert found["win_rate"] == sum(won) / 8 and found["interval"] == list(win_rate.interval(sum(won), 8))
    swapped = judged(folder, capsys, f"--reward={folder}/mine.py:right", a="b.jsonl", b="a.jsonl")
    assert swapped["win_rate"] == 1 - found["win_rate"]
    np.testing.assert_allclose(swapped["interval"], [1 - end for end in found["interval"][::-1]])


def test_a_program_is_asked_in_both_orders_and_sees_the_record(folder, capsys):
    fair = program(folder, "return '1' if given['record']['best'] in first else '2'")
    found = judged(folder, capsys, fair)
    right = judged(folder, capsys, f"--reward={folder}/mine.py:right")
    # Where both are right, the program prefers the first: the order decides, so that it is a tie.
    assert [found[key] for key in ("wins", "losses", "ties")] == [right[key] for key in ("wins", "losses", "ties")]
    assert found["order"] == {"flips": 3 / 8, "first_won": 0.5 + 3 / 16}


def test_a_program_that_prefers_what_it_reads_first_makes_nobody_win(folder, capsys):
    found = judged(folder, capsys, program(folder, "return 1"))
    assert found["win_rate"] == 0.5 and found["ties"] == 8
    assert found["order"] == {"flips": 1, "first_won": 1}
    found = judged(folder, capsys, program(folder, "return 'Tie'"))
    assert found["win_rate"] == 0.5 and found["order"] == {"flips": 0, "first_won": None}


def test_a_program_that_prefers_the_longer_answer_is_seen_in_the_length_baseline(folder, capsys):
    longer = "return 'tie' if len(first) == len(second) else '1' if len(first) > len(second) else '2'"
    found = judged(folder, capsys, program(folder, longer))
    assert found["win_rate"] == found["length"]["baseline"] == (2 + 5 / 2) / 8
    assert found["length"]["longer_won"] == 1 and found["length"]["decided"] == 3
    equal = found["length"]["equal"]
    assert (equal["prompts"], equal["win_rate"]) == (5, 0.5)
    assert judge(folder, program(folder, longer)) == 0
    said = capsys.readouterr().out
    assert "win rate of A" in said and "56.2%" in said and "longer answer won 100.0% of the 3 decided" in said


@pytest.mark.slow
def test_models_answer_with_their_own_templates_and_a_model_is_as_good_as_itself(folder, talker, capsys):
    reward = f"--reward={folder}/mine.py:letters"
    for name in ("letters", "noise"):  # equal answers are ties whatever their rewards
        itself = judged(folder, capsys, f"--reward={folder}/mine.py:{name}", a="talker", b="talker")
        assert itself["win_rate"] == 0.5 and itself["ties"] == 8
    assert cli.main(["generate", str(talker), "--chat", f"--prompts={folder}/asked.jsonl", "--tokens=6", "--json"]) == 0
    (folder / "said.jsonl").write_text(capsys.readouterr().out)
    assert judged(folder, capsys, reward, a="talker", b="said.jsonl")["ties"] == 8
    with_file = judged(folder, capsys, reward, a="talker", b="b.jsonl")
    said = [json.loads(line)["text"].count("a") for line in (folder / "said.jsonl").read_text().splitlines()]
    expected = [0.5 if x == y.count("a") else float(x > y.count("a")) for x, y in zip(said, OF_B, strict=True)]
    assert with_file["win_rate"] == np.mean(expected)


def test_each_comparison_is_a_line_and_what_is_there_is_not_judged_again(folder, capsys):
    out, reward = folder / "won.jsonl", f"--reward={folder}/mine.py:right"
    found = judged(folder, capsys, reward, f"--out={out}")
    lines = out.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    assert [record["answers"] for record in records] == [list(pair) for pair in zip(OF_A, OF_B, strict=True)]
    assert [record["won"] for record in records] == [0, 1, 1, 1, 0, 0.5, 0.5, 0.5]
    out.write_text("".join([*lines[:3], lines[3].replace('"won": 1.0', '"won": 0.0'), lines[4], lines[5][:9]]))
    again = judged(folder, capsys, reward, f"--out={out}")
    assert again["wins"] == found["wins"] - 1 and again["prompts"] == 8
    assert out.read_text().splitlines(keepends=True)[4:] == lines[4:]
    assert judge(folder, f"--reward={folder}/mine.py:letters", f"--out={out}") == exit_codes.USAGE
    assert "was made with reward=" in capsys.readouterr().err
    folder.write("a2.jsonl", [{"prompt": p["prompt"], "response": "c"} for p in PROMPTS])
    assert judge(folder, reward, f"--out={out}", a="a2.jsonl") == exit_codes.USAGE
    assert "was made with a=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", r"asked.jsonl:1: --command=.* printed '3'; it must print 1, 2 or tie"),
        ("return '1\\n2'", "printed 32 lines for 16 comparisons"),
        ("return ''", "printed 0 lines for 16 comparisons"),
        ("sys.exit(4)", "ended with exit code 4"),
    ],
)
def test_a_program_that_fails_is_one_sentence(folder, body, words, capsys):
    assert judge(folder, program(folder, body)) == exit_codes.USAGE
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("wrong", "arguments"),
    [
        ("--reward=SPEC or --command=CMD, and not both", []),
        ("--reward=SPEC or --command=CMD, and not both", ["--reward=exact_match", "--command=true"]),
        ("there is no program no_such_judge", ["--command=no_such_judge -x"]),
        ("No closing quotation", ["--command=judge 'x"]),
        ("--command is empty", ["--command= "]),
        ("no reward absent", ["--reward=absent"]),
        (
            'asked.jsonl:1: the reward exact_match needs a text or a number in the field "answer"',
            ["--reward=exact_match"],
        ),
        (
            "more.jsonl:9: DIR/a.jsonl has no answer to it; mend it, or set --bad_records=skip",
            ["--prompts=DIR/more.jsonl"],
        ),
        ("twice.jsonl:9 answers the same prompt as DIR/twice.jsonl:1", ["TWICE"]),
        ("asked.jsonl:1: a record must have messages, conversations, prompt and response", ["UNANSWERED"]),
    ],
)
def test_mistakes_are_one_sentence(folder, wrong, arguments, capsys):
    folder.write("more.jsonl", [*PROMPTS, {"prompt": "new"}])
    answers = [{"prompt": p["prompt"], "response": "c"} for p in PROMPTS]
    folder.write("twice.jsonl", [*answers, answers[0]])
    files = {"TWICE": "twice.jsonl", "UNANSWERED": "asked.jsonl"}
    (a,) = [files[each] for each in arguments if each in files] or ["a.jsonl"]
    given = [each.replace("DIR", str(folder)) for each in arguments if each not in files]
    if arguments and not any(each.startswith(("--reward", "--command")) for each in given):
        given.append(f"--reward={folder}/mine.py:letters")
    assert judge(folder, *given, a=a) == exit_codes.USAGE
    assert wrong.replace("DIR", str(folder)) in capsys.readouterr().err


def test_the_interval_is_that_of_wilson_and_holds_the_rate_in_95_of_100_trials():
    for won, count in ((7, 10), (0, 20), (50, 50), (1, 1)):
        expected = scipy.stats.binomtest(won, count).proportion_ci(method="wilson")
        np.testing.assert_allclose(win_rate.interval(won, count), expected, atol=1e-9)
    random = np.random.default_rng(0)
    for win, tie, n in ((0.5, 0.0, 60), (0.7, 0.2, 60), (0.9, 0.05, 200)):
        trials = random.choice([1, 0.5, 0], p=[win, tie, 1 - win - tie], size=(4000, n)).sum(1)
        ends = np.asarray([win_rate.interval(won, n) for won in trials])
        held = np.mean((ends[:, 0] <= win + tie / 2) & (win + tie / 2 <= ends[:, 1]))
        assert held > 0.935, (win, tie)
        if not tie:
            assert held < 0.97


def test_lengths_within_a_tenth_are_about_equal():
    found = win_rate.summary([Comparison(1, (100, 90)), Comparison(0, (100, 89)), Comparison(1, (0, 0))])
    assert found["length"]["equal"]["prompts"] == 2 and found["length"]["equal"]["win_rate"] == 1
    assert win_rate.summary([Comparison(1, (100, 50))])["length"]["equal"] == {
        "prompts": 0,
        "win_rate": None,
        "interval": None,
    }


PAIRS = "data/more/alignment/vicuna80_pairwise_gpt4.jsonl.gz"
LOOKUP = """
import gzip, json, sys
*files, a, b = sys.argv[1:]
questions = [json.loads(line) for line in gzip.open(files[0])]
verdicts = {(r["question_id"], r["model_1"], r["model_2"]): r["score"] for r in map(json.loads, gzip.open(files[1]))}
by_text = {(q["text"], q["answers"][m]): (q["question_id"], m) for q in questions for m in (a, b)}
for line in sys.stdin:
    given = json.loads(line)
    (number, first), (_, second) = (by_text[given["prompt"], given[f"answer_{i}"]] for i in (1, 2))
    print({1: "1", 2: "2"}.get(verdicts[number, first, second], "tie"))
"""


@needs_shared(PAIRS)
def test_verdicts_of_gpt_4_in_both_orders(folder, tmp_path, capsys):
    """GPT-4's verdicts on Vicuna's 80 questions (QLoRA, arXiv 2305.14314), counted here directly."""
    a, b = "65b-guanaco", "vicuna-13b"
    with gzip.open(SHARED / "data/more/alignment/vicuna80_answers8.jsonl.gz") as file:
        questions = [json.loads(line) for line in file]
    with gzip.open(SHARED / PAIRS) as file:
        scores = {(r["question_id"], r["model_1"], r["model_2"]): r["score"] for r in map(json.loads, file)}
    won = flips = 0
    for question in questions:
        number = question["question_id"]
        first, second = (scores.get(key) for key in ((number, a, b), (number, b, a)))
        of_a = ({1: 1, 2: 0}.get(first, 0.5), {1: 0, 2: 1}.get(second, 0.5))
        won += of_a[0] if of_a[0] == of_a[1] else 0.5
        flips += of_a[0] != of_a[1]
    for name, model in (("asked", None), ("x", a), ("y", b)):
        records = [{"prompt": q["text"]} | ({"response": q["answers"][model]} if model else {}) for q in questions]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "gpt4.py").write_text(LOOKUP)
    data = SHARED / "data/more/alignment"
    command = f"{sys.executable} {tmp_path}/gpt4.py {data}/vicuna80_answers8.jsonl.gz {SHARED / PAIRS} {a} {b}"
    words = [f"{tmp_path}/x.jsonl", f"{tmp_path}/y.jsonl", f"--prompts={tmp_path}/asked.jsonl", f"--command={command}"]
    assert cli.main(["align", "judge", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["win_rate"] == won / 80 and found["order"]["flips"] == flips / 80
    assert found["order"]["first_won"] > 0.5  # the known fault of this judge
