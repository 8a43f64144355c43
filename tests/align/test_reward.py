"""``scaling align reward`` by its command line, and rewards of texts by its run."""

import json

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.align import reward, score
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.chat import comparisons
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import Chat


def ranked(folder, name, *arguments):
    more = [f"--config.data.train={folder}/c.jsonl", "--config.align.completions=4", "--config.align.epochs=6"]
    return folder.align("reward", name, *more, "--config.optimizer.peak_lr=0.003", *arguments)


@pytest.fixture(scope="module", autouse=True)
def prompts(folder):
    """Prompts with two to four completions; the more letters a, the better."""
    random = np.random.default_rng(0)
    records = []
    for i in range(80):
        count = 2 + i % 3
        texts = ["".join(random.choice(["a", "z"], p=[q, 1 - q], size=6)) for q in random.permutation(5)[:count] / 4]
        if len({text.count("a") for text in texts}) < 2:
            texts[:2] = ["aaaaaa", "zzzzzz"]
        records.append({"prompt": "q", "completions": texts, "ranks": [1 + 6 - text.count("a") for text in texts]})
    folder.write("c.jsonl", records)


@pytest.fixture(scope="module")
def trained(folder):
    """The run ``reward``."""
    assert ranked(folder, "reward") == 0
    return folder / "reward"


@pytest.mark.slow
def test_it_learns_what_people_prefer(folder, trained):
    (*_, last) = folder.lines("reward", "evals.jsonl")
    assert last["accuracy"] > 0.9 and last["margin"] > 0.5 and last["loss"] < 0.5
    assert sum(last["confident"]) == pytest.approx(1) and sum(last["hits"]) == pytest.approx(last["accuracy"])


@pytest.mark.slow
def test_before_the_first_update_all_prompts_cost_about_log_2(folder, trained):
    assert folder.losses("reward")[0] == pytest.approx(np.log(2), abs=0.05)


@pytest.mark.slow
def test_rewards_of_texts_have_the_mean_of_the_demonstrations_as_zero(folder, trained):
    scorer, words = score.load(trained)
    chat = Chat(words)

    def ids(text):
        return reward.ending(chat, ({"role": "user", "content": "q"}, {"role": "assistant", "content": text}))

    texts = [ids("a" * n + "z" * (6 - n)) for n in range(7)]
    found = scorer(texts)
    assert (np.diff(found) > 0).mean() > 0.8 and found[6] > found[0] + 1
    np.testing.assert_allclose(scorer(texts[:2]), found[:2], rtol=1e-5, atol=1e-5)
    record = json.loads((trained / "reward.json").read_text())
    unbiased = score.Scorer(scorer.network, scorer.params, scorer.mesh)(texts)
    np.testing.assert_allclose(found, unbiased + record["bias"], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_bias_is_that_of_given_demonstrations(folder):
    demonstrations = folder.write("good.jsonl", [{"prompt": "q", "response": "aaaaaa"}])
    assert ranked(folder, "shown", f"--config.align.demonstrations={demonstrations}", "--config.align.epochs=1") == 0
    scorer, words = score.load(folder / "shown")
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "aaaaaa"})
    assert scorer([reward.ending(Chat(words), messages)])[0] == pytest.approx(0, abs=1e-5)


def test_demonstrations_that_cannot_be_used_are_refused_before_the_training(folder, capsys):
    long = folder.write("long_ones.jsonl", [{"prompt": "q", "response": "a" * 90}])
    for path, wrong in (
        (long, "no dialogue fits the model's 32 tokens"),
        (f"{folder}/absent.jsonl", "no file matches"),
    ):
        assert ranked(folder, "refused", f"--config.align.demonstrations={path}") != exit_codes.OK
        assert wrong in capsys.readouterr().err and not (folder / "refused").exists()


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing(folder, trained):
    for name, knob in (("parts", "train.microbatch_sequences=8"), ("devices", "mesh.fsdp=4")):
        assert ranked(folder, name, f"--config.{knob}", "--config.align.epochs=2") == 0
    assert ranked(folder, "plain", "--config.align.epochs=2") == 0
    for name in ("parts", "devices"):
        # Rounding grows from step to step.
        np.testing.assert_allclose(folder.losses(name)[:10], folder.losses("plain")[:10], rtol=2e-5)


@pytest.mark.slow
def test_a_reward_model_writes_no_text(folder, trained, capsys):
    assert cli.main(["generate", str(trained), "--prompt=q"]) == exit_codes.USAGE
    assert "rates texts" in capsys.readouterr().err


def test_a_prompt_whose_completions_do_not_fit_is_left_out_aloud(folder):
    path = folder.write(
        "long.jsonl",
        [{"prompt": "q", "chosen": "a", "rejected": "z" * 90}, *[{"prompt": "q", "chosen": "a", "rejected": "z"}] * 3],
    )
    config = cfg.Config(
        data=cfg.Data(train=path, validation_fraction=0.5),
        train=cfg.Train(sequence_length=32, microbatch_sequences=2),
        eval=cfg.Eval(batch_sequences=2),
    )
    found = reward.data(config, tokenizer.load("bytes+chat"))
    assert found.training.sequences + len(found.held_out) == 2 * 3


SHAPES = {
    "pair": {"prompt": "q", "chosen": "a", "rejected": "z"},
    "instruction": {"instruction": "q", "input": "", "chosen": "a", "rejected": "z"},
    "dialogues": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: z"},
    "messages": {"messages": [{"role": "user", "content": "q"}], "completions": ["z", "a"], "scores": [1, 5]},
    "lists": {
        key: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        for key, text in (("chosen", "a"), ("rejected", "z"))
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_record(folder, shape):
    (found,) = comparisons.read(folder.write("s.jsonl", [SHAPES[shape]]), Skipped(refuses=True), 2)
    best = found.answers[int(np.argmin(found.ranks))]
    assert [message["content"] for message in best] == ["q", "a"] and len(set(found.ranks)) == 2


FAULTY = {
    "only one completion": {"prompt": "q", "completions": ["a"], "ranks": [1]},
    "all completions are ties": {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 2]},
    "response is empty": {"prompt": "q", "chosen": "a", "rejected": " "},
    "no number": {"prompt": "q", "completions": ["a", "b"], "ranks": [1, "2"]},
    "for each of the 2": {"prompt": "q", "completions": ["a", "b"], "ranks": [1]},
    "begin with a line": {"chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_records_are_refused_or_skipped_and_counted(folder, fault):
    path = folder.write("f.jsonl", [SHAPES["pair"], FAULTY[fault]])
    with pytest.raises(ValueError, match=rf"f\.jsonl:2: .*{fault}"):
        list(comparisons.read(path, Skipped(refuses=True), 4))
    skipped = Skipped(refuses=False)
    assert len(list(comparisons.read(path, skipped, 4))) == 1 and sum(skipped.counts.values()) == 1


@pytest.mark.parametrize(
    ("wrong", "arguments"),
    [
        ("config.align.completions=3", ["--config.align.completions=3"]),
        ("config.align.completions", ["--config.align.completions=10"]),
        ("train.microbatch_sequences=1", ["--config.train.microbatch_sequences=1", "--config.mesh.fsdp=8"]),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(folder, wrong, arguments, capsys):
    assert ranked(folder, "wrong", *arguments) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err and not (folder / "wrong").exists()
