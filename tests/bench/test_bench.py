"""Benchmarks: what is measured, the peer's side of the conversation, and how noise is left out."""

import stat
import sys
import time

import pytest

from scaling import cli, exit_codes
from scaling.bench import compare, train
from scaling.bench.peer import Peer
from scaling.bench.quiet import Timing, busy, quiet

# Answers like the PyTorch peer: every call takes as long as it says.
STAND_IN = """#!{python}
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["what"] == "generate":
        print(json.dumps({{"error": "ImportError: no transformers", "version": "PyTorch 0"}}), flush=True)
    else:
        print(json.dumps({{"seconds": 1000.0, "cpu": 500.0, "version": "PyTorch 0"}}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_training_is_timed_beside_the_peer(stand_in, monkeypatch, capsys):
    monkeypatch.setitem(train.SHAPES, "11m", (1, 32, 2, 128, 8))
    assert cli.main(["bench", "train", "--shapes", "11m", "--repetitions=2", f"--peer={stand_in}"]) == 0
    ours, theirs, times = capsys.readouterr().out.splitlines()
    assert "8 x 256 tokens, float32, remat none" in ours and "tokens/s" in ours
    assert theirs.startswith("  PyTorch 0, eager, fused AdamW: 2.0 tokens/s, 1,000,000 ms (median of ")
    assert float(times.split("quiet calls: ")[1].split(";")[0]) > 100


def test_mistakes(stand_in, capsys):
    for arguments, sentence in (
        (["train", "--shapes", "12m"], "'12m' is none of 16m, 11m, 124m"),
        (["train", "--repetitions=0"], "--repetitions must be 1 or more"),
        (["generate", "--batch", "2", "0"], "--batch must be 1 or more"),
        (["train", "--peer=/nowhere/python"], "--peer=/nowhere/python cannot be run"),
    ):
        assert cli.main(["bench", *arguments]) == exit_codes.USAGE
        assert sentence in capsys.readouterr().err
    with Peer(stand_in) as peer, pytest.raises(ValueError, match="cannot generate: ImportError: no transformers"):
        peer.measure("generate", batch=1)
    with Peer("/bin/false") as peer, pytest.raises(ValueError, match="ended: it ended without a word"):
        peer.measure("train")


def test_noisy_timings_count_only_where_there_are_no_others():
    calm, loud = Timing(1.0, 1.0, 0.01), Timing(5.0, 1.0, 0.5)
    assert quiet([calm, loud]) == [calm] and quiet([loud, loud]) == [loud, loud]
    assert "1,000 ms (median of 1 of 2; best 1,000 ms)" in compare.speed([calm, loud], tokens=10)
    assert "NONE of them quiet" in compare.speed([loud], tokens=10)
    assert "medians of quiet calls: 5.00; call by call 5.00" in compare.ratio([calm, calm], [loud, loud])


def test_time_that_passes_is_counted():
    end, before = time.process_time() + 0.1, busy()
    with Timing() as timing:
        while time.process_time() < end:
            pass
    assert timing.seconds >= 0.05 and timing.cpu >= 0.05
    assert busy() >= before and timing.others >= 0


@pytest.mark.slow
def test_start_and_data_are_timed(capsys, pytestconfig, monkeypatch):
    monkeypatch.chdir(pytestconfig.rootpath)
    smoke = "--experiment=experiments/cpu/smoke.py"
    assert cli.main(["bench", "startup", smoke, "--repetitions=1"]) == 0
    cold, warm = (float(line.split(" after ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert 0.2 < warm < cold
    assert cli.main(["bench", "data", smoke, "--steps=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(7 batches, 2 threads)" in lines[1] and float(lines[1].split()[1].replace(",", "")) > 1000
    assert cli.main(["bench", "startup", "--experiment=nowhere.py", "--repetitions=1"]) == exit_codes.USAGE
    assert "nowhere.py logs no step: scaling train: error: config file nowhere.py does not" in capsys.readouterr().err
