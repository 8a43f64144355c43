"""Where things lie: home folders, names that are not UTF-8, caches, and the folder of a config.json."""

import argparse
import json
import os
from pathlib import Path

import pytest

from scaling import cache, cli, exit_codes
from scaling.config import schema as cfg
from scaling.config.files import load, split_arguments
from tests.experiments import SHAPES, experiment

LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("workdir", "~/runs/a"),
        ("data.train", "~/corpus/*.txt"),
        ("data.validation", "~"),
        ("data.tokenizer", "~/my.model"),
        ("data.cache_dir", "~/cache"),
        ("eval.tasks_data", "~/tasks"),
        ("eval.tasks", "arithmetic,~/mine.toml"),
        ("data.mixture", "(('~/a', 0.5), ('gs://b/~', 0.5))"),
    ],
)
def test_home_in_knobs(home, knob, value):
    _, overrides, _ = split_arguments([f"--config.{knob}={value}"])
    found = {name: value for name, value, _, _ in cfg.knobs(load(None, overrides))}[f"config.{knob}"]
    mixture = ((f"{home}/a", 0.5), ("gs://b/~", 0.5))
    assert found == (mixture if knob == "data.mixture" else value.replace("~", str(home)))


def test_every_knob_that_is_a_path_knows_home(home):
    paths = [name for name, _, unit, _ in cfg.knobs() if unit == "path"]
    found = load(None, [f"--{name}=~/x" for name in paths])
    assert [value for name, value, _, _ in cfg.knobs(found) if name in paths] == [f"{home}/x"] * len(paths) != []


def test_home_in_files_and_in_the_option_itself(home, tmp_path):
    (home / "mine.py").write_text(experiment("~/runs/mine"))
    for arguments in (["--config=~/mine.py"], ["--config", "~/mine.py"]):
        spec, _, _ = split_arguments(arguments)
        assert load(spec).workdir == f"{home}/runs/mine"
    (home / "sweep.py").write_text(experiment("~/runs/sweep", f"{SHAPES}, [tokens(1024)]"))
    assert cli.main(["sweep", f"--config={home}/sweep.py", "--dry_run"]) == 0
    assert not (Path.cwd() / "~").exists()


def test_home_in_options(home, monkeypatch):
    seen = []
    monkeypatch.setattr("scaling.commands.tokenize.run", lambda options: seen.append(options) or 0)
    assert cli.main(["tokenize", "~/a*.txt", "--tokenizer=~/t.model", "--output=~/out", "--text_key=~"]) == 0
    assert vars(seen[0]) | {"input": f"{home}/a*.txt", "tokenizer": f"{home}/t.model", "output": f"{home}/out"} == vars(
        seen[0]
    )
    options = argparse.Namespace(models=["~/r", "s"], tasks="a,~/t.toml", prompt=["~/said"], stop=["~"], limit=3)
    cli._at_home(options, verb="fit")
    assert options == argparse.Namespace(
        models=[f"{home}/r", "s"], tasks=f"a,{home}/t.toml", prompt=["~/said"], stop=["~"], limit=3
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", f"--config.workdir={LATIN_1}/run"),
        ("train", f"--config.data.cache_dir={LATIN_1}"),
        ("tokenize", "{text}", "--tokenizer=bytes", f"--output={LATIN_1}"),
        ("tokenizer", "train", "{text}", "--vocab_size=300", f"--output={LATIN_1}.model"),
        ("logits", "{text}", "--ids=ids.npy", f"--output={LATIN_1}.npy"),
        ("export", "{text}", f"--output={LATIN_1}"),
        ("report", LATIN_1),
        ("evaluate", LATIN_1, "--tasks=arithmetic"),
        ("bias", LATIN_1),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_names_that_are_not_utf8_are_refused_at_the_start(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("text " * 1000)
    if arguments[0] == "train":
        (tmp_path / "x.py").write_text(experiment("run", data__train=str(tmp_path / "t.txt")))
        arguments += (f"--config={tmp_path}/x.py",)
    assert cli.main([argument.format(text=tmp_path / "t.txt") for argument in arguments]) == exit_codes.USAGE
    assert "UTF-8" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("caf")]


def test_a_working_directory_that_is_not_utf8_is_found_by_a_training(tmp_path, monkeypatch, capsys):
    (tmp_path / LATIN_1).mkdir()
    monkeypatch.chdir(tmp_path / LATIN_1)
    Path("x.py").write_text(experiment("run", train__batch_tokens=256))
    Path("t.txt").write_text("text " * 1000)
    assert cli.main(["train", "--config=x.py", "--config.data.train=t.txt"]) == exit_codes.USAGE
    assert "UTF-8" in capsys.readouterr().err and not Path("run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("tokenize", "t.txt", "--tokenizer=bytes", "--output=link"),
        ("tokenizer", "train", "t.txt", "--vocab_size=300", "--output=link"),
        ("export", "run", "--output=link"),
        ("report", "run", "--output=link"),
        ("sweep", "--config=sweep.py"),
        ("launch", "--target=local", "--config=sweep.py"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_link_to_nothing_is_named_before_the_work(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("gone")
    Path("t.txt").write_text("text " * 1000)
    Path("sweep.py").write_text(experiment("link", f"{SHAPES}, [tokens(1024)]"))
    assert cli.main(list(arguments)) == exit_codes.USAGE
    assert "link to gone" in capsys.readouterr().err and not Path("gone").exists()


@pytest.mark.parametrize("folder", ["exp [v1]", "a$\\x$b", "runs*", "what?"])
@pytest.mark.parametrize("where", ["workdir", "working directory"])
def test_a_folder_that_cannot_hold_checkpoints_is_refused_at_the_start(tmp_path, monkeypatch, capsys, folder, where):
    """Orbax saves to all of these and reads nothing back."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("text " * 1000)
    if where == "working directory":
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
    Path("x.py").write_text(experiment("run", train__batch_tokens=256, data__train=str(tmp_path / "t.txt")))
    more = [f"--config.workdir={folder}/run"] if where == "workdir" else []
    assert cli.main(["train", "--config=x.py", *more]) == exit_codes.USAGE
    assert "no checkpoint" in capsys.readouterr().err
    assert not Path("run").exists() and (where != "workdir" or not Path(folder).exists())


def write(path, config, written=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"config": config, "versions": {}} if written else config))
    return str(path)


@pytest.mark.parametrize(
    ("name", "written", "recorded", "found"),
    [
        ("config.json", True, "runs/a", "copy"),
        ("config.json", True, "gs://bucket/a", "copy"),  # a copy on this machine
        ("plan.json", False, "runs/a", "copy"),
        ("plan.json", False, "gs://bucket/a", "gs://bucket/a"),  # lies with the launcher
        ("config.json", False, "runs/a", "runs/a"),  # knobs that somebody wrote down
        ("mine.json", True, "runs/a", "runs/a"),
    ],
)
def test_the_folder_of_a_config_is_the_run(tmp_path, monkeypatch, name, written, recorded, found):
    monkeypatch.chdir(tmp_path)
    config = cfg.to_dict(cfg.Config(workdir=recorded))
    path = write(Path("copy") / name, config, written)
    assert load(path).workdir == found
    assert load(path, ["--config.workdir=other"]).workdir == "other"
    if found == "copy":
        assert load(str(tmp_path / path)).workdir == str(tmp_path / "copy")
        monkeypatch.chdir("copy")
        assert Path(load(name).workdir).absolute() == tmp_path / "copy"


@pytest.fixture
def usual(monkeypatch):
    """The cache when none is named, found anew."""
    monkeypatch.delenv("SCALING_CACHE", raising=False)
    cache._usual.cache_clear()
    yield cache.root
    cache._usual.cache_clear()


def test_the_cache_is_in_the_home_folder(usual, home):
    assert usual() == home / ".cache" / "scaling"


def test_without_a_home_the_cache_is_ones_own_folder_of_temporary_files(usual, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # an unknown number
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = usual()
    assert found == tmp_path / f"scaling-{os.getuid()}" == usual()
    assert found.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err.count("SCALING_CACHE") == 1


@pytest.mark.parametrize("taken", ["link", "open to all", "a file"])
def test_a_cache_that_others_can_write_to_is_not_used(usual, tmp_path, monkeypatch, taken):
    """What is compiled is run again, so nobody else may put it there."""
    monkeypatch.setenv("HOME", "/proc/nothing")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"scaling-{os.getuid()}"
    if taken == "link":
        (tmp_path / "theirs").mkdir()
        folder.symlink_to("theirs")
    elif taken == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    found = usual()
    assert found.parent == tmp_path and found != folder and found.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_is_named(monkeypatch, home):
    monkeypatch.setenv("SCALING_CACHE", "~/mine")
    assert cache.root() == home / "mine"
    for wrong in ("gs://bucket/cache", LATIN_1):
        monkeypatch.setenv("SCALING_CACHE", wrong)
        with pytest.raises(ValueError, match="SCALING_CACHE"):
            cache.root()
