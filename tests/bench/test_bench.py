"""Benchmarks: what is measured, the peer's side of the conversation, and how noise is left out."""

import dataclasses
import functools
import importlib.util
import json
import re
import stat
import sys
import time
from pathlib import Path

import jax
import pytest
from etils import epath

from scaling import cli, exit_codes
from scaling.bench import compare, loop_pieces, overhead, train
from scaling.bench.loop_pieces import Piece
from scaling.bench.peer import Peer
from scaling.bench.quiet import Timing, busy, quiet
from scaling.interop import huggingface
from scaling.interop.served import load_decoder
from scaling.model import decoder
from tests import tiny

# Answers like the PyTorch peer: every call takes as long as it says.
STAND_IN = """#!{python}
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["what"] == "generate":
        print(json.dumps({{"error": "ImportError: no transformers", "version": "PyTorch 0"}}), flush=True)
    else:
        with open({log!r}, "a") as log:
            log.write(line)
        answer = {{"seconds": 1000.0, "cpu": 500.0, "version": "PyTorch 0", "how": "somehow", "memory": 2**30}}
        print(json.dumps(answer), flush=True)
"""


TINY = train.Shape(num_layers=1, d_model=64, num_heads=2, vocab_size=8192, sequences=8)


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, log=str(tmp_path / "requests")))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


@pytest.mark.slow
def test_training_is_timed_beside_the_peer(stand_in, monkeypatch, capsys):
    monkeypatch.setitem(train.SHAPES, "11m", TINY)
    assert cli.main(["bench", "train", "--shapes", "11m", "--repetitions=2", f"--peer={stand_in}"]) == 0
    ours, more, theirs, times = capsys.readouterr().out.splitlines()
    assert "8 x 256 tokens, float32, remat none" in ours and "tokens/s" in ours
    assert "GiB a device" in more and "dispatch" in more
    assert float(more.split("compiled in ")[1].split()[0]) > 0
    whole, state = map(float, re.search(r"; (\S+) GiB a device, (\S+) of them", more).groups())
    assert whole > state > 0
    assert theirs.startswith("  PyTorch 0, somehow: 2.0 tokens/s, 1,000,000 ms (median of ")
    assert float(times.split("quiet calls: ")[1].split(";")[0]) > 100
    assert [(r["device"], r["dtype"], r["compile"]) for r in requests(stand_in)] == [("cpu", "float32", False)] * 2


@pytest.mark.slow
def test_on_a_gpu_the_peer_is_first_and_alone(stand_in, monkeypatch, capsys):
    """As if the CPU were one: products in bfloat16, the peer compiled, on CUDA, done before we take any memory."""
    monkeypatch.setattr(train, "on_cpu", lambda: False)
    monkeypatch.setattr(train, "ACCELERATOR", {"125m": TINY, "350m": dataclasses.replace(TINY, num_layers=2)})
    monkeypatch.setattr(train, "SHAPES", train.ACCELERATOR)
    seen = []
    monkeypatch.setattr(train._Steps, "step", watched(train._Steps.step, lambda: seen.append(len(requests(stand_in)))))
    assert cli.main(["bench", "train", "--repetitions=2", "--sequences=1", f"--peer={stand_in}"]) == 0
    assert set(seen) == {4}  # two shapes, two calls each
    assert all((r["device"], r["dtype"], r["compile"]) == ("cuda", "bfloat16", True) for r in requests(stand_in))
    assert [r["num_layers"] for r in requests(stand_in)] == [1, 1, 2, 2]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "1 x 256 tokens, bfloat16, remat none" in lines[0] and "(median of 2 of 2; best" in lines[0]
    assert lines[2].endswith("MFU 0 %, 1.00 GiB") and lines[3].startswith("  times faster, medians: ")


def watched(method, before):
    def run(self):
        before()
        return method(self)

    return run


def requests(stand_in):
    return [json.loads(line) for line in Path(stand_in).with_name("requests").read_text().splitlines()]


def test_a_gpu_has_shapes_of_gpt3():
    shape = train.ACCELERATOR["1300m"]
    assert (shape.num_layers, shape.d_model, shape.num_heads, shape.length) == (24, 2048, 16, 2048)
    assert set(train.ACCELERATOR) == {"125m", "350m", "1300m", "2700m"}
    assert train.shapes() == ["16m", "11m", "124m"]  # on this CPU


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peer_itself(dtype):
    with Peer() as peer:
        shape = dict(num_layers=1, d_model=32, num_heads=2, vocab_size=128, sequence_length=16, sequences=2)
        timing = peer.measure("train", device="cpu", dtype=dtype, compile=False, **shape)
        assert timing.seconds > 0 and peer.how.startswith(f"eager, {dtype}")
        with pytest.raises(ValueError, match="no GPU"):
            peer.measure("train", device="cuda", dtype=dtype, compile=False, **shape)


@pytest.mark.slow
def test_8_bits_beside_plain(tmp_path, capsys, monkeypatch):
    model = tiny.model(vocab_size=257, attention_pattern=("dense",))
    huggingface.save(model, decoder.initialize(model, jax.random.key(0)), tmp_path / "model")
    monkeypatch.setattr("scaling.bench.int8.load_decoder", functools.partial(load_decoder, tokenizer_name="bytes"))
    text = tmp_path / "text"
    text.write_text("A text of some length. " * 3)
    case = ["bench", "int8", str(tmp_path / "model"), f"--text={text}", "--prompt=8", "--new=4", "--batch=2"]
    assert cli.main([*case, "--windows=2", "--length=32", "--repetitions=1"]) == 0
    out = capsys.readouterr().out
    found = re.findall(r"  (\w+): ([\d.]+) nats a token(?:, ([+-][\d.]+))?", out)
    assert [kind for kind, _, _ in found] == ["none", "weights", "cache", "both"]
    for _, loss, difference in found[1:]:
        assert float(loss) - float(found[0][1]) == pytest.approx(float(difference), abs=2e-4)
        assert abs(float(difference)) < 0.01
    assert out.count("greedy texts of 4 tokens") == 3 and out.count("tokens/s") == 4
    assert cli.main([*case, "--windows=9", "--length=32"]) == exit_codes.USAGE
    assert "has 69, the model 32" in capsys.readouterr().err


def test_mistakes(stand_in, capsys, monkeypatch):
    for arguments, sentence in (
        (["train", "--shapes", "12m"], "'12m' is none of 16m, 11m, 124m"),
        (["train", "--repetitions=0"], "--repetitions must be 1 or more"),
        (["generate", "--batch", "2", "0"], "--batch must be 1 or more"),
        (["dispatch", "--num_layers=3"], "--num_layers=3 must be a positive multiple of 2"),
        (["dispatch", "--num_layers=0"], "--num_layers=0 must be a positive multiple of 2"),
        (["dispatch", "--steps=1"], "--steps=1 must be at least 2"),
        (["serve", "--width=65"], "--width=65 must be a multiple of 64"),
        (["serve", "--clients", "1", "0"], "--clients must be 1 or more"),
        (["overhead", "--turns=0"], "--turns must be 1 or more"),
        (["int8", "run", "--text=t", "--length=32"], "--length=32 must be more than --prompt=32"),
        (["train", "--peer=/nowhere/python"], "--peer=/nowhere/python cannot be run"),
    ):
        assert cli.main(["bench", *arguments]) == exit_codes.USAGE
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cli.main(["bench", "train", "--shapes", "11m", f"--peer={stand_in}"]) == exit_codes.USAGE
    assert "is a tpu" in capsys.readouterr().err
    with Peer(stand_in) as peer, pytest.raises(ValueError, match=r"generate.*no transformers"):
        peer.measure("generate", batch=1)
    with Peer("/bin/false") as peer, pytest.raises(ValueError, match="without a message"):
        peer.measure("train")


def test_noisy_timings_count_only_where_there_are_no_others():
    calm, loud = Timing(1.0, 1.0, 0.01), Timing(5.0, 1.0, 0.5)
    assert quiet([calm, loud]) == [calm] and quiet([loud, loud]) == [loud, loud]
    assert "1,000 ms (median of 1 of 2; best 1,000 ms)" in compare.speed([calm, loud], tokens=10)
    assert "NONE of them quiet" in compare.speed([loud], tokens=10)
    with Timing(shared=False) as timing:  # an accelerator's
        time.sleep(0.01)
    assert timing.others == 0.0 and compare.ratio([timing], [timing]) == "  times faster, medians: 1.00"
    assert "medians of quiet calls: 5.00; call by call 5.00" in compare.ratio([calm, calm], [loud, loud])


def test_shares_of_pieces_are_of_a_step_and_off_pieces_do_not_count():
    timings = [Timing(2e-3, 1e-3), Timing(4e-3, 2e-3), Timing(9e-3, 3e-3)]
    line = Piece.of("line", "logging", timings, calls=2, every=10)
    assert (line.seconds, line.least, line.cpu) == (2e-3, 1e-3, 1e-3)
    save = Piece("save", "reliability", 0.5, 0.25, 0.25, every=1000, device="waits")
    half = save.less(Piece("", "", 0.3, 0.3, 0.05), "half of it")
    assert half.seconds == pytest.approx(0.2) and half.least == 0 and half.cpu == pytest.approx(0.2)
    off = dataclasses.replace(save, name="hash", default=False)
    feeding = dataclasses.replace(line, name="batch", kind="feeding")
    lines = list(overhead.table([line, save, off, feeding]))
    assert lines[2] == "| line | logging | 10 steps | 2,000.0 (1,000.0) | 1,000.0 | 200.0 | 100.0 | 0.100 | computes |"
    assert "| hash (off by default) |" in lines[4]
    assert lines[-3:] == [
        "| **reliability and logging** | | | | | 700.0 | 350.0 | 0.350 | |",
        "| of it, what the device waits for or does | | | | | 500.0 | 250.0 | 0.250 | |",
        "| with feeding | | | | | 900.0 | 450.0 | 0.450 | |",
    ]


@pytest.mark.slow
def test_clients_are_served_both_ways(capsys):
    options = ["--clients", "2", "--requests=1", "--repetitions=1", "--num_layers=1", "--width=64"]
    assert cli.main(["bench", "serve", *options]) == 0
    head, plain, batched = capsys.readouterr().out.splitlines()
    assert "1 layers, width 64" in head and "2 clients, by themselves, 4 in turns" in plain
    assert "2 clients, continuous batching, 8 rows" in batched and "tokens/s" in batched


@pytest.mark.slow
def test_pieces_of_a_training(tmp_path, monkeypatch):
    """Every piece is timed on the objects of a real run; two processes agree."""
    monkeypatch.setattr(loop_pieces, "_REPEATS", 2)
    monkeypatch.setattr(loop_pieces, "_BAR_SECONDS", 0.5)
    made = overhead.config(turns=0)
    train = dataclasses.replace(
        made.train, batch_tokens=8 * 16, tokens=3 * 8 * 16, sequence_length=16, microbatch_sequences=8
    )
    made = dataclasses.replace(made, train=train, model=dataclasses.replace(made.model, num_layers=1))
    with overhead.training(made, epath.Path(tmp_path)) as here:
        here.loop.begin(0)
        here.watch.goodput.begin(0)
        here.state, code = here.loop.train(here.run.fresh_state(), here.stop)
        pieces = {piece.name: piece for piece in loop_pieces.alone(here)}
    assert code == 0 and all(piece.seconds >= 0 and piece.cpu >= 0 for piece in pieces.values())
    assert {piece.kind for piece in pieces.values()} == {"reliability", "logging", "feeding"}
    assert pieces["metrics.jsonl"].every == 10 and pieces["metrics.jsonl"].least > 0
    assert sum(name.startswith("two processes") for name in pieces) == 2


def test_time_that_passes_is_counted():
    end, before = time.process_time() + 0.1, busy()
    with Timing() as timing:
        while time.process_time() < end:
            pass
    assert timing.seconds >= 0.05 and timing.cpu >= 0.05
    assert busy() >= before and timing.others >= 0


@pytest.mark.slow
def test_conversion_is_measured_and_exact(tmp_path, capsys):
    arguments = ["bench", "convert", str(tmp_path / "convert")]
    assert cli.main([*arguments, "--gb=0.05", "--width=128"]) == 0
    size, taken, given, same = capsys.readouterr().out.splitlines()
    assert size.startswith("convert: 0.05 GB, 16 layers")
    for line in (taken, given):
        assert 0 < float(line.split("at most ")[1].split()[0]) < 2
    assert same == "convert: the exported files are the same, byte for byte"
    assert not list((tmp_path / "convert").iterdir())
    assert cli.main([*arguments, "--gb=0.05", "--width=4096"]) == exit_codes.USAGE
    assert "--width=4096: one layer is more than the 0.05 GB of --gb" in capsys.readouterr().err


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
    assert "nowhere.py logs no step" in capsys.readouterr().err
