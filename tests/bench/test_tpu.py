"""``scaling bench tpu``: what MaxText is asked for, what its answers become, and what is said of mistakes."""

import dataclasses
import importlib.util
import json
import runpy
import stat
import sys
from pathlib import Path

import pytest

from scaling import cli, exit_codes
from scaling.bench import maxtext_client as maxtext
from scaling.bench import tpu
from scaling.plan import hlo, predict

PROGRAM = Path(__file__).parents[1] / "plan" / "step.hlo"

# Answers like the MaxText peer: the program of tests/plan, or what the remat policy says; the request is kept.
STAND_IN = """#!{python}
import json, os, shutil, sys
if sys.argv[1] == "-c":
    sys.exit(print("maxtext 0, jax 0"))
request = json.loads(sys.argv[2])
print("MaxText talks")
knobs = dict(knob.split("=", 1) for knob in request["knobs"])
with open("{folder}/request.json", "w") as file:
    json.dump(knobs | {{"program": sys.argv[1], "library": os.environ["TPU_LIBRARY_PATH"]}}, file)
if knobs["remat_policy"] == "none":
    print(json.dumps({{"error": "XlaRuntimeError: RESOURCE_EXHAUSTED: ran out"}}))
elif knobs["remat_policy"] == "nonsense":
    print(json.dumps({{"error": "ValueError: no such policy"}}))
else:
    shutil.copy("{text}", request["text"])
    print(json.dumps({{"seconds": 7.0, "bytes": 3 * 2**30, "version": "MaxText 0"}}))
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, folder=tmp_path, text=PROGRAM))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu-0.0.99.dist-info").mkdir()
    path = str(tmp_path / "libtpu" / "libtpu.so")
    Path(path).write_text("")
    monkeypatch.setenv("TPU_LIBRARY_PATH", path)
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def halved(monkeypatch):
    """Ours takes half of the stand-in's cycles in every kind of work, and does not fit without recomputation."""

    def ours(size, case, knobs):
        found = predict.predict(hlo.parse(PROGRAM.read_text()), tpu.chips.find("v5e"))
        parts = {
            kind: dataclasses.replace(part, seconds=part.seconds / 2, cycles=part.cycles // 2)
            for kind, part in found.parts.items()
        }
        found = dataclasses.replace(found, parts=parts, cycles=found.cycles // 2, seconds=found.seconds / 2)
        return tpu.Step(knobs, None if "none" in knobs else found, 2**31, 3.0, ours=True)

    monkeypatch.setattr(tpu, "_ours", ours)


def test_the_best_of_both_stand_side_by_side(stand_in, library, halved, tmp_path, capsys):
    arguments = [
        "--ours",
        "compute.remat=none",
        "compute.remat=full",
        "--theirs",
        "remat_policy=none",
        "remat_policy=full",
    ]
    assert cli.main(["bench", "tpu", f"--peer={stand_in}", "--sequences=2", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1300m on v5e:4x4, 2 sequences of 2048 a chip, libtpu 0.0.99"
    assert lines[1].endswith("compute.remat=none: does not fit") and lines[3].endswith(
        "remat_policy=none: does not fit"
    )
    assert "ours     compute.remat=full: 6.1M cycles" in lines[2] and "2.0 GiB a chip" in lines[2]
    assert "MaxText  remat_policy=full: 12.1M cycles" in lines[4] and "compiled in 7 s" in lines[4]
    assert "0.50 of MaxText's cycles, 0.50 of its predicted time" in lines[5]
    products = next(line for line in lines if "matrix products" in line).split()
    assert products[2:] == ["6.0M", "4.0", "ms", "12.0M", "8.0", "ms"]
    asked = json.loads((tmp_path / "request.json").read_text())
    assert Path(asked["program"]).name == "maxtext_peer.py" and asked["library"] == library
    assert (asked["compile_topology"], asked["internal_compile_num_devices"]) == ("v5e:4x4", "16")
    assert (asked["base_emb_dim"], asked["head_dim"], asked["base_mlp_dim"]) == ("2048", "128", "8192")
    assert (asked["vocab_size"], asked["per_device_batch_size"], asked["decoder_block"]) == ("50304", "2", "gpt3")


def test_without_a_peer_there_is_no_ratio(library, halved, capsys):
    assert cli.main(["bench", "tpu", "--sizes", "1300m", "2700m"]) == 0
    out = capsys.readouterr().out
    assert "2700m on v5e:4x8" in out and "MaxText" not in out and "matrix products" in out


def test_the_table_has_a_row_for_each_case_and_compiles_nothing_twice(stand_in, library, halved, tmp_path, capsys):
    asked = tmp_path / "request.json"
    arguments = ["bench", "tpu", "--table", "--sizes", "2700m", f"--peer={stand_in}"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr().out.splitlines()
    assert "libtpu 0.0.99; maxtext 0, jax 0" in first
    row = first[-1].split(" | ")
    assert row[0] == "| 2700m" and row[1] == "v5e:8x8, 2"
    assert row[2].endswith("`auto`") and row[5].endswith("`minimal_with_context`") and row[-2] == "**0.50**"
    asked.unlink()
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == first and not asked.exists()
    for path in (tmp_path / "cache" / "programs").iterdir():
        kept = path.read_bytes()
        path.write_bytes(kept[:200] + bytes([kept[200] ^ 255]) + kept[201:])
    assert cli.main(arguments) == 0
    assert "is damaged and is made again" in capsys.readouterr().out and asked.exists()


def test_mistakes(stand_in, library, halved, capsys):
    for arguments, sentence in (
        (["--sizes", "12m"], "'12m' is none of 1300m, 2700m"),
        (["--table", "--sizes", "175b"], "'175b' is none of 1300m, 2700m"),
        (["--table", "--sequences=2"], "--table has settings of its own: leave out --sequences"),
        (["--sequences=0"], "--sequences must be 1 or more"),
        (["--topology=v5e:4"], "sizes of v5e must be like"),
        (["--peer=/nowhere/python"], "--peer=/nowhere/python cannot be run"),
        (["--peer=/bin/false"], "ended without a message"),
        (
            [f"--peer={stand_in}", "--theirs", "remat_policy=nonsense"],
            "cannot compile remat_policy=nonsense: ValueError",
        ),
        ([f"--peer={stand_in}", "--theirs", "remat_policy=none"], "no try of MaxText fits v5e:4x4"),
        ([f"--peer={stand_in}", "--theirs", "full"], "--theirs: 'full' is no knob=value"),
    ):
        assert cli.main(["bench", "tpu", *arguments]) == exit_codes.USAGE
        assert sentence in capsys.readouterr().err


def test_our_layout_is_the_peers_unless_told_otherwise():
    config = tpu._config("1300m", tpu.CASES["1300m"], "")
    assert (config.mesh.fsdp, config.train.microbatch_sequences, config.train.batch_tokens) == (16, 64, 64 * 2048)
    assert config.model.attention_pattern == ("dense",) and config.train.ramp_tokens == 0
    other = tpu._config("1300m", tpu.CASES["1300m"], "compute.remat=dots mesh.fsdp=8 mesh.tensor=2")
    assert (other.compute.remat, other.mesh.fsdp, other.mesh.tensor) == ("dots", 8, 2)
    with pytest.raises(ValueError, match=r"did you mean config\.compute\.remat"):
        tpu._config("1300m", tpu.CASES["1300m"], "model.remt=dots")


@pytest.mark.skipif(importlib.util.find_spec("maxtext") is not None, reason="MaxText is installed here")
def test_the_peer_without_maxtext_says_so(tmp_path, monkeypatch, capsys):
    request = json.dumps({"knobs": [], "text": str(tmp_path / "text")})
    monkeypatch.setattr(sys, "argv", ["maxtext_peer.py", request])
    runpy.run_path(str(maxtext.PROGRAM), run_name="__main__")
    assert "No module named 'maxtext'" in json.loads(capsys.readouterr().out)["error"]
