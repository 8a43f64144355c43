import errno
import json
import subprocess
import sys
import types

import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.config import schema as cfg


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def experiment(tmp_path):
    """Writes an experiment file whose line 4 is given; returns its path."""

    def write(line="pass"):
        path = tmp_path / "experiment.py"
        path.write_text(
            "from scaling.config import default_config\n"
            "def get_config(argument=''):\n"
            f"    config = default_config()\n    {line}\n    return config\n"
        )
        return str(path)

    return write


@pytest.fixture
def module(monkeypatch):
    """Puts a stand-in for a module of another part, so that only the command line is under test."""

    def put(name, **functions):
        stand_in = types.ModuleType(name)
        for function, value in functions.items():
            setattr(stand_in, function, value)
        monkeypatch.setitem(sys.modules, name, stand_in)

    return put


def refused(result, *expected, code=exit_codes.USAGE, verb="train"):
    got, out, err = result
    assert got == code
    assert out == ""
    assert err.startswith(f"scaling {verb}: error: ")
    assert err.count("\n") == 1
    for part in expected:
        assert part in err


OVERRIDES = {
    "unknown knob": ("--config.model.num_layer=2", ["config.model.num_layer", "did you mean config.model.num_layers?"]),
    "unknown section": ("--config.modle.num_layers=2", ["config.modle.num_layers", "config.model.num_layers?"]),
    "section": ("--config.model=2", ["config.model is a section", "config.model.vocab_size"]),
    "word for number": ("--config.train.tokens=many", ["config.train.tokens", "whole number", "'many'"]),
    "fraction": ("--config.model.num_layers=1.5", ["config.model.num_layers", "whole number", "1.5"]),
    "word for float": ("--config.optimizer.peak_lr=fast", ["config.optimizer.peak_lr", "a number", "'fast'"]),
    "bool": ("--config.log.tensorboard=maybe", ["config.log.tensorboard", "true or false", "'maybe'"]),
    "no value": ("--config.train.tokens", ["config.train.tokens", "needs a value", "whole number"]),
    "no for a number": ("--noconfig.train.tokens", ["config.train.tokens", "true-or-false"]),
    "negative lr": ("--config.optimizer.peak_lr=-1", ["config.optimizer.peak_lr=-1.0", "0 or more"]),
    "heads": ("--config.model.num_heads=7", ["config.model.num_heads=7", "d_model=768"]),
    "empty number": ("--config.train.tokens=", ["config.train.tokens", "whole number"]),
}


@pytest.mark.parametrize(("override", "expected"), OVERRIDES.values(), ids=OVERRIDES)
def test_bad_overrides(run, experiment, override, expected):
    refused(run("train", f"--config={experiment()}", override), *expected)


MISTAKES = {
    "unknown knob": ("config.model.num_layer = 2", ["config.model.num_layer", "did you mean config.model.num_layers?"]),
    "unknown section": ("config.modle.num_layers = 2", ["config.modle is not a knob", "config.model?"]),
    "knob of another section": ("config.mixture = ()", ["config.mixture", "config.data.mixture?"]),
    "unknown item": ("config['model']['d_modle'] = 2", ["config.model.d_modle", "config.model.d_model?"]),
    "reading an unknown knob": ("x = config.train.token", ["config.train.token ", "config.train.tokens?"]),
    "wrong type": ("config.train.tokens = 'x'", ["config.train.tokens", "whole number", "'x'"]),
    "whole float": ("config.train.tokens = 1e6", ["config.train.tokens", "whole number", "write 1_000_000"]),
    "section replaced": ("config.model = 3", ["config.model is a section", "3"]),
    "any exception": ("1 / 0", ["ZeroDivisionError", "division by zero"]),
    "own message": ("raise ValueError('two\\nlines')", ["two lines"]),
    "syntax": ("config.seed = = 1", ["invalid syntax"]),
}


@pytest.mark.parametrize(("line", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_file_name_file_and_line(run, experiment, line, expected):
    path = experiment(line)
    refused(run("train", "--config", path), f"{path}:4: ", *expected)


def test_bad_experiment_files(run, tmp_path, experiment):
    missing = tmp_path / "none.py"
    refused(run("train", f"--config={missing}"), str(missing), "does not exist")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    refused(run("train", f"--config={empty}"), str(empty), "get_config")
    refused(run("train", f"--config={experiment('config = None')}"), "ConfigDict", "None")
    no_python = tmp_path / "config.yaml"
    no_python.write_text("{}")
    refused(run("train", f"--config={no_python}"), str(no_python), ".py")
    no_run = tmp_path / "config.json"
    no_run.write_text("{}")
    refused(run("train", f"--config={no_run}"), str(no_run), "JSON object of knobs")
    for content, words in (("{", "not JSON"), ('{"a": %s}' % ("9" * 5000), "digits"), ("[" * 100_000, "deeply")):
        no_run.write_text(content)
        refused(run("train", f"--config={no_run}"), str(no_run), words)
    refused(run("train", "--config"), "--config needs a value")


def test_train_without_config_lists_experiments(run):
    got = run("train")
    refused(got, "--config=FILE", "gpt3/125m", "cpu/demo")
    assert "cpu_ladder" not in got[2]  # a sweep


def test_train_gets_the_frozen_config_and_the_run_name(run, experiment, module):
    calls = []

    def train(config, name, started):
        calls.append((config, name))
        return exit_codes.DIVERGED

    module("scaling.commands.training", train=train)
    code, _, err = run("train", f"--config={experiment()}:x", "--config.seed=5")
    assert (code, err) == (exit_codes.DIVERGED, "")
    [(config, name)] = calls
    assert isinstance(config, cfg.Config)
    assert (config.seed, name) == (5, "experiment-x")


ERRORS = {
    "value": (ValueError("no such\nthing"), exit_codes.USAGE, "no such thing"),
    "missing": (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), exit_codes.USAGE, "No such file: a.txt"),
    "permission": (PermissionError("runs/x cannot be written"), exit_codes.USAGE, "runs/x cannot be written"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "r"), exit_codes.USAGE, "Read-only file system: r"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "r"), exit_codes.IO, "No space left on device: r"),
    "broken disk": (OSError("checkpoint could not be written"), exit_codes.IO, "checkpoint could not be written"),
}


@pytest.mark.parametrize(("error", "code", "expected"), ERRORS.values(), ids=ERRORS)
def test_errors_of_a_verb(run, experiment, module, error, code, expected):
    def train(config, name, started):
        raise error

    module("scaling.commands.training", train=train)
    refused(run("train", f"--config={experiment()}"), expected, code=code)


def test_interrupt_exit_and_bugs_go_their_own_ways(run, experiment, module):
    def raising(error):
        def train(config, name, started):
            raise error

        return train

    command = ("train", f"--config={experiment()}")
    module("scaling.commands.training", train=raising(KeyboardInterrupt()))
    assert run(*command)[0] == exit_codes.SIGINT
    module("scaling.commands.training", train=raising(SystemExit(exit_codes.SIGTERM)))
    with pytest.raises(SystemExit) as caught:
        run(*command)
    assert caught.value.code == exit_codes.SIGTERM
    module("scaling.commands.training", train=raising(AssertionError("a bug")))
    with pytest.raises(AssertionError):
        run(*command)


def test_traceback_on_demand(run, monkeypatch):
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="did you mean"):
        run("train", "--config.sed=1")


def test_errors_from_outside_the_package_say_how_to_see_more(run, experiment, module):
    def train(config, name, started):
        int("x")

    module("scaling.commands.training", train=train)
    refused(run("train", f"--config={experiment()}"), "invalid literal", "SCALING_TRACEBACK=1")
    assert "SCALING_TRACEBACK" not in run("train")[2]


def test_config_prints_the_resolved_whole(run, experiment):
    code, out, err = run("config", f"--config={experiment()}", "--config.model.num_layers", "2", "--devices=4")
    values = json.loads(out)
    assert (code, err) == (exit_codes.OK, "")
    assert values["workdir"] == "runs/experiment"
    assert values["model"]["num_layers"] == 2
    assert values["model"]["d_head"] == 64
    assert values["mesh"]["data"] == 4
    assert cfg.freeze(values).model.num_layers == 2
    refused(run("config", "--devices=8", "--config.mesh.fsdp=3"), "fsdp=3", "8 devices", verb="config")


def test_config_describes_every_knob(run):
    code, out, _ = run("config", "--describe")
    assert code == exit_codes.OK
    for name, _, _, help in cfg.knobs():
        assert f"| {name.rpartition('.')[2]} |" in out
        assert help.replace("|", "\\|") in out


def test_sizes(run):
    code, out, _ = run("sizes")
    assert code == exit_codes.OK
    assert "GPT-3 175b" in out
    code, out, _ = run("sizes", "--json")
    assert len(json.loads(out)) > 13


def test_unknown_verbs_and_options(run):
    code, out, err = run("trian")
    assert (code, out, err.count("\n")) == (exit_codes.USAGE, "", 1)
    assert "'trian'" in err
    assert "'train'" in err
    refused(run("train", "--foo"), "--foo")
    refused(run("sizes", "--config=x.py"), "x.py", "takes no --config", verb="sizes")
    refused(run("bench"), "WHAT", verb="bench")
    refused(run("tokenizer", "train", "a.txt", "--vocab_size=many", "--output=o.model"), "many", verb="tokenizer")
    assert run()[0] == exit_codes.USAGE


def test_version_and_help(capsys):
    for arguments in (["--version"], ["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
    assert "exit codes" in capsys.readouterr().out


def test_logits(run, module, tmp_path):
    def logits(model, ids, mask, types, decoder_ids):
        assert model == "runs/x"
        return np.ones((*ids.shape, 3), np.float32)

    module("scaling.interop.logits", logits=logits)
    ids, output = tmp_path / "ids.npy", tmp_path / "logits.npy"
    np.save(ids, np.zeros((2, 5), np.int32))
    code, out, err = run("logits", "runs/x", f"--ids={ids}", f"--output={output}")
    assert (code, out.strip(), err) == (exit_codes.OK, str(output), "")
    assert np.load(output).shape == (2, 5, 3)


def test_logits_that_cannot_be_written_are_not_computed(run, module, tmp_path):
    def logits(model, ids, mask, types, decoder_ids):
        raise AssertionError("computed")

    module("scaling.interop.logits", logits=logits)
    np.save(tmp_path / "ids.npy", np.zeros((2, 5), np.int32))
    (tmp_path / "logits.npy").mkdir()
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "logits.npy", tmp_path / "file" / "logits.npy"):
        refused(
            run("logits", "runs/x", f"--ids={tmp_path / 'ids.npy'}", f"--output={output}"), str(output), verb="logits"
        )


def test_logits_refuses_bad_ids(run, tmp_path):
    ids, output = tmp_path / "ids.npy", tmp_path / "logits.npy"
    command = ("logits", "runs/x", f"--ids={ids}", f"--output={output}")
    refused(run(*command), "ids.npy", verb="logits")
    for bad in (np.zeros((2, 5)), np.zeros((2, 3, 4), np.int32)):
        np.save(ids, bad)
        refused(run(*command), "ids.npy", "integer", "[batch, time]", verb="logits")
    ids.write_text("not numpy")
    refused(run(*command), "ids.npy", ".npy file", verb="logits")
    refused(run("logits", "runs/x", f"--ids={ids}", "--output=logits.txt"), "logits.txt", verb="logits")
    assert not output.exists()


def test_plot_prints_the_picture(run, module):
    module("scaling.report.curves", plot=lambda directory: f"{directory}/loss.png")
    assert run("plot", "runs/x") == (exit_codes.OK, "runs/x/loss.png\n", "")


def test_light_verbs_start_without_jax():
    program = (
        "import sys; from scaling.cli import main; main(['sizes', '--json']); main(['config']); main(['train']); "
        "sys.exit('jax' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_waits_does_not_keep_a_failed_process():
    program = (
        "import threading, time; from scaling import cli; cli._LAST_SECONDS = 0.5; cli.main = lambda: 74; "
        "threading.Thread(target=time.sleep, args=[300]).start(); cli.program()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=100).returncode == 74


def test_a_missing_extra_of_the_corpus_is_one_sentence():
    program = (
        "import sys; sys.modules['pyarrow'] = None; from scaling.cli import main; sys.exit(main(['data', 'build']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.USAGE
    assert done.stderr == "scaling data: error: data needs the package pyarrow: pip install 'scaling[data]'\n"


def test_tokenizer_then_tokenize(run, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog; the end.\n\n" * 50)
    model, output = tmp_path / "small.model", tmp_path / "tokens"
    code, out, err = run("tokenizer", "train", str(text), "--vocab_size=300", f"--output={model}")
    assert (code, out.strip(), err) == (exit_codes.OK, str(model), "")
    code, out, _ = run("tokenize", str(text), f"--tokenizer={model}", f"--output={output}")
    assert (code, out.strip()) == (exit_codes.OK, str(output))
    assert any(output.iterdir())
    command = ("tokenize", str(text), f"--tokenizer={model}", f"--output={output}")
    refused(run(*command), str(output), "not overwritten", verb="tokenize")
    refused(run("tokenize", "none.txt", "--tokenizer=bytes", "--output=o"), "none.txt", verb="tokenize")
    refused(run("tokenize", str(text), "--tokenizer=byts", "--output=o"), "'byts'", "bytes", verb="tokenize")
