"""Rewards that a text names: a reward model's run, a user's function, and those that ship."""

import sys
import types

import numpy as np
import pytest

from scaling.align import reward, rewards, score
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import Chat


def prompts(*records):
    user = {"role": "user", "content": "q"}
    return [Prompt((user,), record, f"p.jsonl:{n}") for n, record in enumerate(records, start=1)]


@pytest.fixture(scope="module")
def model(folder):
    """A run of a reward model, of ``bytes+chat`` with a context of 32."""
    path = folder.write(
        "liked.jsonl", [{"prompt": "q", "chosen": "a" * (i % 5 + 1), "rejected": "z"} for i in range(16)]
    )
    more = [f"--config.data.train={path}", "--config.chat.system=S", "--config.align.epochs=4"]
    assert folder.align("reward", "liked", *more, "--config.optimizer.peak_lr=0.003") == 0
    return folder / "liked"


@pytest.mark.slow
def test_a_reward_model_reads_dialogues_by_its_own_template_and_system_message(model):
    found = rewards.load(str(model))(prompts({}, {}, {}), ["a", "zzz", ""])
    scorer, words = score.load(model)
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "q"}
    expected = [
        reward.ending(Chat(words), (system, user, {"role": "assistant", "content": text})) for text in ("a", "zzz", "")
    ]
    assert found.dtype == np.float32 and found.shape == (3,) and len(set(found.tolist())) == 3
    np.testing.assert_allclose(found, scorer(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_devices_and_batches_change_nothing(model):
    texts = ["a", "zzz", "", "aa", "b"]
    expected = rewards.load(str(model))(prompts(*[{}] * 5), texts)
    for axes, batch_size in (("", 2), ("fsdp=8", 2), ("fsdp=2,tensor=2,data=2", 3)):
        found = rewards.load(str(model), axes, batch_size=batch_size)(prompts(*[{}] * 5), texts)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_long_dialogue_loses_its_oldest_turns_and_a_long_turn_is_refused(model, caplog):
    score_of = rewards.load(str(model))
    last = {"role": "user", "content": "q"}
    old = ({"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y" * 20})
    found = score_of([Prompt((*old, last), {}, "p.jsonl:7"), *prompts({})], ["a", "a"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert "p.jsonl:7: the reward model reads it without its oldest turns" in caplog.text
    with pytest.raises(ValueError, match=r"p\.jsonl:1: .* 49 tokens, and the reward model reads at most 32"):
        score_of(prompts({}), ["a" * 40])


def test_a_function_of_a_user_sees_records_and_answers(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def longer(records, answers):\n"
        "    return [len(a) - r['wanted'] for r, a in zip(records, answers)]\n"
        "def array(records, answers):\n"
        "    records[0].clear()\n"
        "    return np.asarray([a == 'yes' for a in answers])\n"
    )
    asked = prompts({"wanted": 1}, {"wanted": 2})
    np.testing.assert_array_equal(rewards.load(f"{tmp_path}/mine.py:longer")(asked, ["abc", "z"]), [2, -1])
    found = rewards.load(f"{tmp_path}/mine.py:array")(asked, ["yes", "no"])
    assert found.dtype == np.float32 and found.tolist() == [1, 0] and asked[0].record == {"wanted": 1}


RETURNS = {
    "[1.0]": "mine.py:f must return a number for each of 2 answers, and returned 1",
    "[1, 2, 3]": "each of 2 answers, and returned 3",
    "3.0": "must return a list of numbers, and returned 3.0",
    "{0: 1, 1: 2}": "must return a list of numbers",
    "None": "must return a list of numbers, and returned None",
    "[1, '2']": r"p\.jsonl:2: .* is '2', which is no number",
    "[None, 2]": r"p\.jsonl:1: .* is None, which is no number",
    "[1, [2]]": r"p\.jsonl:2: .* no number",
    "[0, float('nan')]": r"p\.jsonl:2: .* is nan; it must be finite",
    "[float('-inf'), 0]": r"p\.jsonl:1: .* is -inf; it must be finite",
    "[0, 1e39]": r"p\.jsonl:2: .* it must be finite",
    "[0, 10**400]": r"p\.jsonl:2: .* it must be finite",
    "np.asarray([0, np.nan])": r"p\.jsonl:2: .* is nan; it must be finite",
    "np.zeros((2, 2))": r"p\.jsonl:1: .* no number",
    "1 / 0": r"mine\.py:3: ZeroDivisionError: division by zero",
    "records[1]['absent']": r"mine\.py:3: KeyError: 'absent'",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_what_a_function_must_not_return_is_one_sentence(tmp_path, returned):
    (tmp_path / "mine.py").write_text(f"import numpy as np\ndef f(records, answers):\n    return {returned}\n")
    with pytest.raises(ValueError, match=RETURNS[returned]):
        rewards.load(f"{tmp_path}/mine.py:f")(prompts({}, {}), ["a", "b"])


@pytest.mark.slow
def test_a_reward_of_a_model_that_is_not_finite_is_refused(model):
    scorer, words = score.load(model)
    broken = score.Scorer(scorer.network, scorer.params, scorer.mesh, bias=float("nan"))
    with pytest.raises(ValueError, match=r"p\.jsonl:1: .* by the reward model is nan; it must be finite"):
        rewards.ByModel(broken, words)(prompts({}), ["a"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("DIR/absent.py:f", r"no file .*absent\.py"),
        ("DIR/mine.py", r"names no function; write .*mine\.py:FUNCTION"),
        ("DIR/mine.py:g", r"mine\.py has no function g\(\)"),
        ("DIR/mine.py:x", r"mine\.py has no function x\(\)"),
        ("DIR/bad.py:f", r"bad\.py:2"),
        ("DIR/absent", r"no reward .*/absent: .*FILE\.py:FUNCTION, .*exact_match or constraints"),
        ("exact_mach", r"no reward exact_mach: .*exact_match or constraints"),
        ("DIR/base", r"base is no reward model"),
    ],
)
def test_a_reward_that_does_not_exist_is_named(folder, spec, words):
    (folder / "mine.py").write_text("x = 1\ndef f(records, answers):\n    return []\n")
    (folder / "bad.py").write_text("def f(records, answers):\n    return [\n")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        rewards.load(spec.replace("DIR", str(folder)))


EXACT = [
    ("57", "57", 1),
    (57, " 57\n", 1),
    ("57", "12 + 45 = 57.", 1),
    ("57", "57, since 12 + 45", 0),  # the last number counts
    ("57", "57.0", 1),
    ("57", "157", 0),
    ("57", "", 0),
    ("-3", "4 - 7 = -3", 1),
    ("3", "10-3", 1),
    ("1200", "it costs $1,200.", 1),
    ("He has 2. #### 1,234", "so #### 1234", 1),
    ("72", "#### 72 of 80 (90 %)", 0),
    ("72", "80 at first #### 72", 1),
    ("Paris", " Paris ", 1),
    ("Paris", "It is Paris", 0),
    ("Paris", "It is #### Paris", 1),
    (0.5, ".5", 1),
]


@pytest.mark.parametrize(("wanted", "answer", "expected"), EXACT)
def test_exact_match(wanted, answer, expected):
    assert rewards.load("exact_match")(prompts({"answer": wanted}), [answer]).tolist() == [expected]


@pytest.mark.parametrize("record", [{}, {"answer": None}, {"answer": True}, {"answer": ["a"]}, {"answer": " "}])
def test_exact_match_names_a_record_without_an_answer(record):
    with pytest.raises(ValueError, match=r'p\.jsonl:2: .*"answer"'):
        rewards.load("exact_match")(prompts({"answer": "1"}, record), ["1", "1"])


@pytest.fixture
def follows(monkeypatch):
    """A stand-in for IFEval's constraints, of which the real ones are tested in tests/evaluate."""

    def check(name, kwargs, response):
        if name not in ("comma:none", "words:most"):
            raise ValueError(f"the constraint {name} is not known")
        return "," not in response if name == "comma:none" else len(response.split()) <= kwargs["most"]

    monkeypatch.setitem(sys.modules, "scaling.evaluate.constraints", types.SimpleNamespace(follows=check))


def test_constraints_count_the_share_that_is_followed(follows):
    record = {"instruction_id_list": ["comma:none", "words:most"], "kwargs": [{}, {"most": 2}]}
    found = rewards.load("constraints")(prompts(record, record, record), ["a b", "a, b", "a, b c"])
    assert found.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"instruction_id_list": [], "kwargs": []},
        {"instruction_id_list": ["comma:none"], "kwargs": []},
        {"instruction_id_list": ["comma:none"], "kwargs": [None]},
        {"instruction_id_list": "comma:none", "kwargs": [{}]},
        {"instruction_id_list": ["no:such"], "kwargs": [{}]},
    ],
)
def test_constraints_name_a_record_that_cannot_be_used(follows, record):
    with pytest.raises(ValueError, match=r"p\.jsonl:1: .*(instruction_id_list, and kwargs|no:such)"):
        rewards.load("constraints")(prompts(record), ["a"])
