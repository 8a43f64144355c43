"""A tiny run to start from, and the command line of ``scaling align``; shared by the tests of this folder."""

import json

import pytest

from scaling import cli

KNOBS = [
    "--config.compute.dtype=float32",
    "--config.compute.loss_chunk=0",
    "--config.log.tensorboard=false",
    "--config.log.every_steps=1",
    "--config.eval.tokens=256",
    "--config.train.batch_tokens=512",
    "--config.optimizer.warmup_tokens=0",
]
FILE = "get_config = __import__('scaling.config', fromlist=['x']).default_config\n"
SIZES = ("num_layers=2", "d_model=32", "num_heads=2", "context_length=32", "vocab_multiple=8")


class Folder:
    """A folder of runs, of which ``base`` is one of byte text.

    Args:
        path: the folder.
    """

    def __init__(self, path):
        self.path = path
        (path / "any.py").write_text(FILE)

    def __truediv__(self, name):
        return self.path / name

    def __str__(self):
        return str(self.path)

    def run(self, verb, name, *arguments):
        """The exit code of a verb that trains in the run directory of that name."""
        words = [*verb.split(), f"--config={self.path}/any.py", f"--config.workdir={self.path}/{name}"]
        return cli.main([*words, *KNOBS, *arguments])

    def align(self, kind, name, *arguments):
        """The exit code of ``align KIND``, which starts from ``base``."""
        return self.run(
            f"align {kind}", name, f"--config.start={self.path}/base", "--config.data.tokenizer=", *arguments
        )

    def lines(self, name, file="metrics.jsonl"):
        """The records of a file of a run."""
        return [json.loads(line) for line in (self.path / name / file).read_text().splitlines()]

    def losses(self, name):
        """The loss of each step of a run."""
        return [line["loss"] for line in self.lines(name)]

    def write(self, name, records):
        """A JSON Lines file; returns its path."""
        (self.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(self.path / name)


@pytest.fixture(scope="session")
def starts(tmp_path_factory):
    """The ``Folder`` of the runs that the tests of all files begin with."""
    made = Folder(tmp_path_factory.mktemp("starts"))
    sizes = [f"--config.model.{size}" for size in SIZES]
    assert made.run("train", "base", *sizes, "--config.data.tokenizer=bytes", "--config.train.tokens=10240") == 0
    return made


@pytest.fixture(scope="module")
def folder(starts, tmp_path_factory):
    """A ``Folder`` of a file of tests, so files cannot share a name; ``base`` and ``talker`` are those of all."""
    made = Folder(tmp_path_factory.mktemp("align"))
    for name in ("base", "talker"):  # the second is there once a test asks for it
        (made / name).symlink_to(starts / name)
    return made


@pytest.fixture(scope="session")
def talker(starts):
    """The run ``talker``: of the run ``base``, it answers with one to three letters and ends its turn."""
    records = [{"prompt": "q", "response": letters} for letters in ("a", "b", "aa", "ab", "ba", "bb", "aab", "bba")]
    path = starts.write("talk.jsonl", records * 8)
    more = [f"--config.data.train={path}", "--config.align.epochs=100", "--config.optimizer.peak_lr=0.01"]
    assert starts.align("sft", "talker", *more) == 0
    return starts / "talker"
