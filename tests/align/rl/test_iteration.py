"""What an iteration of ``scaling align ppo`` and ``grpo`` does on the host: compilations, the hash of its batch."""

import jax
import numpy as np
import pytest

from scaling.align.rl.iteration import Iteration, mean_of_finite
from scaling.align.rl.prompts import Row
from scaling.data.batch import filled
from scaling.train.batch_hash import BatchHashes, of_step

REWARD = "def count(records, answers):\n    return [answer.count('e') / 4 for answer in answers]\n"
KNOBS = ("rl.response_tokens=8", "train.batch_tokens=512", "align.epochs=4", "eval.every_steps=1", "rl.kl_target=1")


@pytest.fixture
def compiled():
    """The names of programs, in the order in which they are compiled or read from the cache."""
    found = []

    def listen(event, seconds, **named):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(named.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_nothing_compiles_after_the_first_iteration_and_validation(folder, kind, compiled, monkeypatch):
    random = np.random.default_rng(0)
    prompts = folder.write("c.jsonl", [{"prompt": "".join(random.choice([*"abcd"], 5))} for _ in range(20)])
    (folder / "c.py").write_text(REWARD)
    (folder / "c.txt").write_text("the cat sat on the mat. " * 200)
    before, after, iterate = [], [], Iteration.__call__

    def watched(self, *arguments):
        before.append(len(compiled))
        found = iterate(self, *arguments)
        after.append(len(compiled))
        return found

    monkeypatch.setattr(Iteration, "__call__", watched)
    more = {"ppo": ["rl.minibatches=2", "rl.passes=2", f"rl.pretraining={folder}/c.txt"], "grpo": ["rl.samples=4"]}
    knobs = [f"--config.{knob}" for knob in (*KNOBS, *more[kind], f"rl.reward={folder}/c.py:count")]
    assert folder.align(kind, f"compiled_{kind}", f"--config.data.train={prompts}", *knobs) == 0
    assert len(after) > 3 and len(folder.lines(f"compiled_{kind}", "evals.jsonl")) == len(after)
    assert after[0] > before[0]  # the listener hears what is compiled
    assert compiled[before[1] : after[-1]] == []


def test_the_hash_of_a_batch_is_that_of_its_rows_read_again():
    """Prompts have no targets; a bad step is noted with this hash."""
    rows = [
        Row(np.full(4, i, np.int32), np.int32(2), np.int32(i % 3), np.arange(i, i + 10, dtype=np.int32).reshape(2, 5))
        for i in range(4)
    ]
    places = {(part, slot): rows[2 * part + slot] for part in range(2) for slot in range(2)}
    hashed = BatchHashes(np.arange(2), 2).combined(filled((2, 2), places))
    assert hashed == of_step(rows, 0, 4, 4)
    for changed in (rows[3]._replace(number=np.int32(1)), rows[3]._replace(pretraining=rows[2].pretraining)):
        assert of_step([*rows[:3], changed], 0, 4, 4) != hashed
    assert of_step([row._replace(pretraining=None) for row in rows], 0, 4, 4) != hashed


def test_a_bad_update_has_no_part_in_the_means_of_its_iteration():
    assert float(mean_of_finite(np.array([1.0, np.nan, 3.0, np.inf]))) == 2
    assert np.isnan(float(mean_of_finite(np.array([np.nan, np.inf]))))
