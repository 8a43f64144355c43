"""The verb ``data``: folders, and what it says."""

import pytest

from scaling import cli


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """An override with a data set of two equal documents, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("One and the same text. " * 20)
    (tmp_path / "mine.py").write_text(
        "from scaling.corpus.config import default_config\n"
        "def get_corpus():\n"
        "    config = default_config()\n"
        "    config.tokens.tokenizer = 'bytes'\n"
        "    return config\n"
    )
    return ["--config.workers=1", "--config.sources=(('mine', '?.txt'),)"]


def test_a_stage_has_a_folder_of_its_own_and_a_build_needs_no_file(sources, tmp_path, capfd):
    assert cli.main(["data", "exact", "--config=mine.py", *sources]) == 0
    assert "2 ->         1 documents" in capfd.readouterr().out
    assert cli.main(["data", "exact", *sources]) == 0
    capfd.readouterr()
    stages = "--config.stages=('read','extract','tokens','mixture')"
    assert cli.main(["data", "build", *sources, stages, "--config.tokens.tokenizer=bytes"]) == 0
    out, err = capfd.readouterr()
    assert "decontaminate  is left out: config.decontaminate.tasks names no task" in out
    assert "mine has 922 tokens, and a training with sequences of 2,048 needs" in err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["corpus", "exact", "mine-exact"]


def test_a_stage_without_what_it_needs_is_refused(sources, tmp_path, capfd):
    assert cli.main(["data", "decontaminate", *sources]) == 2
    assert "config.decontaminate.tasks names no task" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
