"""Experiments by name, and the wheel that has them."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_editable, build_wheel

from scaling import cli, exit_codes
from scaling.config import shipped
from scaling.config.files import is_sweep, load, run_name
from scaling.sweep.read import runs_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, and in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_the_experiments_of_the_checkout():
    names = shipped.experiments()
    assert {"gpt3/125m", "gpt3/175b", "gpt2/124m", "gpt1/gpt1", "cpu/demo", "sweeps/cpu_ladder"} <= names.keys()
    assert "in_context/documents" not in names  # a program
    assert all(path.is_relative_to(ROOT / "experiments") for path in names.values())


@pytest.mark.parametrize("name", ["gpt3/125m", "gpt3/125m.py", "experiments/gpt3/125m.py", "./experiments/gpt3/125m"])
def test_a_name_and_a_path_of_the_documentation_work_from_any_folder(elsewhere, name):
    assert load(name) == load(str(ROOT / "experiments/gpt3/125m.py"))
    assert run_name(name) == "125m"
    assert not is_sweep(name)


def test_argument_and_overrides_of_a_name(elsewhere):
    config = load("gpt3/1300m:v5e:4x8", ["--config.seed=3"])
    assert (config.mesh.fsdp, config.seed) == (load(f"{ROOT}/experiments/gpt3/1300m.py:v5e:4x8").mesh.fsdp, 3)
    assert run_name("gpt3/1300m:v5e:4x8") == "1300m-v5e-4x8"
    assert is_sweep("sweeps/cpu_ladder:demo")
    runs = runs_of("sweeps/cpu_ladder:smoke", ["--config.seed=3"])
    assert {run.config.seed for run in runs} == {3}
    assert all(run.config.workdir.startswith("runs/cpu_ladder-smoke/") for run in runs)


def test_a_file_that_is_there_comes_first(elsewhere):
    mine = elsewhere / "gpt3/125m.py"
    mine.parent.mkdir()
    mine.write_text((ROOT / "experiments/cpu/smoke.py").read_text())
    assert load("gpt3/125m.py").model.d_model == 32
    assert load("gpt3/125m").model.d_model == 768


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt3/126m", "gpt3/125m"),
        ("experiments/gpt3/175.py", "gpt3/175b"),
        ("125m", "gpt3/125m"),
        ("sweeps/cpu_lader:demo", "sweeps/cpu_ladder"),
        ("../scaling/cli", "scaling config --list"),
        ("/absent/mine.py", "scaling config --list"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(elsewhere, capsys, name, hint):
    assert cli.main(["config", f"--config={name}"]) == exit_codes.USAGE
    error = capsys.readouterr().err
    assert name.partition(":")[0] in error and hint in error and error.count("\n") == 1


def test_list(elsewhere, capsys):
    assert cli.main(["config", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == list(shipped.experiments())
    assert all(len(line.split()) > 3 for line in lines[:-2])
    assert lines[-1] == f"files: {ROOT / 'experiments'}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the distribution by a function of hatchling.build; returns its file."""

    def build(function):
        folder = tmp_path_factory.mktemp("dist")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            return folder / function(str(folder))

    return build


@pytest.mark.slow
def test_a_wheel_is_enough_by_itself(built, elsewhere):
    installed = elsewhere / "installed"
    with zipfile.ZipFile(built(build_wheel)) as archive:
        archive.extractall(installed)
    # Without `site`, the .pth file of an editable install puts no checkout on the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(installed), sysconfig.get_path("purelib")))}
    work = elsewhere / "empty"
    work.mkdir()

    def run(*arguments):
        command = [sys.executable, "-S", "-m", "scaling", *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True).stdout

    config = json.loads(run("config", "--config=gpt3/125m", "--config.seed=3"))
    assert (config["model"]["d_model"], config["seed"]) == (768, 3)
    plan = run("sweep", "--config=sweeps/cpu_ladder:smoke", "--dry_run")
    assert all(run.name in plan for run in runs_of("sweeps/cpu_ladder:smoke", []))
    assert str(installed / "scaling/experiments") in run("config", "--list")
    assert not list(work.iterdir())


def test_an_editable_install_has_no_copies(built):
    with zipfile.ZipFile(built(build_editable)) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".py", ".toml"))]
