"""What comes after pre-training, with all runs in an object store: the same numbers as on disk."""

import json

import numpy as np
import pytest
from etils import epath

from scaling import cli
from tests.align.conftest import FILE, KNOBS, SIZES
from tests.align.rl.test_learning import comparable
from tests.align.test_own_template import TEMPLATE
from tests.align.test_rating import TOXIC


def write(folder):
    """The files that the runs read, which are on this machine."""
    random = np.random.default_rng(0)
    (folder / "any.py").write_text(FILE)
    (folder / "toxic.toml").write_text(TOXIC)
    (folder / "own.jinja").write_text(TEMPLATE)
    (folder / "texts.txt").write_text("aaa\nbbb\n")
    files = {
        "toxic": [{"text": "ab"[i % 2] * (1 + i % 5), "kind": "ab"[i % 2]} for i in range(64)],
        "d": [{"prompt": f"{i:02}", "response": f"{i:02}"} for i in range(160)],
        "c": [{"prompt": "q", "completions": ["az"[i % 2] * 3, "za"[i % 2] * 2], "ranks": [1, 2]} for i in range(80)],
        "p": [{"prompt": "".join(random.choice([*"abcd"], 3))} for _ in range(20)],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def chain(folder, runs, out):
    """Trains base, sft (adapters, a template), reward, grpo by that reward, and a classifier; answers and rates."""

    def train(verb, name, *arguments, start="base"):
        begin = [f"--config.start={runs}/{start}", "--config.data.tokenizer="] if start else []
        words = [*verb.split(), f"--config={folder}/any.py", f"--config.workdir={runs}/{name}", *KNOBS]
        assert cli.main([*words, *begin, *arguments]) == 0, name

    sizes = [f"--config.model.{size}" for size in SIZES]
    train("train", "base", *sizes, "--config.data.tokenizer=bytes", "--config.train.tokens=5120", start="")
    adapters = ["--config.lora.rank=4", "--config.optimizer.peak_lr=0.1", f"--config.chat.template={folder}/own.jinja"]
    adapters.append("--config.data.tokenizer=bytes+chat")
    train("align sft", "sft", f"--config.data.train={folder}/d.jsonl", *adapters)
    train(
        "align reward", "reward", f"--config.data.train={folder}/c.jsonl", "--config.align.completions=2", start="sft"
    )
    rl = [f"--config.rl.reward={runs}/reward", "--config.rl.samples=4", "--config.rl.response_tokens=8"]
    train("align grpo", "grpo", f"--config.data.train={folder}/p.jsonl", *rl, start="sft")
    toxic = f"{folder}/toxic.jsonl"
    task = [f"--task={folder}/toxic.toml", f"--config.data.train={toxic}", f"--config.data.validation={toxic}"]
    train("align finetune", "rater", *task)
    asked = [f"--prompts={folder}/p.jsonl", f"--reward={runs}/reward", f"--out={out}", "--tokens=6", "--samples=2"]
    assert cli.main(["align", "sample", f"{runs}/grpo", *asked]) == 0
    assert cli.main(["align", "classify", f"{runs}/rater", f"{folder}/texts.txt"]) == 0


@pytest.mark.slow
def test_what_comes_after_pre_training_is_that_on_disk(store, url, tmp_path, capsys, monkeypatch):
    write(tmp_path)
    said = {}
    for runs in (url, f"{tmp_path}/runs"):
        chain(tmp_path, runs, tmp_path / "out.jsonl")
        said[runs] = (capsys.readouterr().out, (tmp_path / "out.jsonl").read_text())
        for file in tmp_path.glob("out.*"):
            file.unlink()
    there, here = said.values()
    assert there[1] == here[1] and there[0].replace(url, "RUNS") == here[0].replace(f"{tmp_path}/runs", "RUNS")
    for name in ("base", "sft", "reward", "grpo", "rater"):
        for file in ("metrics.jsonl", "evals.jsonl"):
            lines = [epath.Path(f"{runs}/{name}/{file}").read_text().splitlines() for runs in said]
            first, second = (comparable(map(json.loads, each)) for each in lines)
            assert first == second and first, (name, file)
    assert (
        (epath.Path(url) / "sft/chat.jinja").read_text()
        == TEMPLATE
        == (epath.Path(url) / "grpo/chat.jinja").read_text()
    )
