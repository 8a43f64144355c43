"""The verb ``serve`` by its command line, from a run on the disk to the end by ctrl-C."""

import json
import signal
import socket
import subprocess
import sys

import httpx
import openai
import pytest

from scaling import cli, exit_codes
from tests.programs import environment

KNOBS = [
    "--config.model.num_layers=1", "--config.model.d_model=16", "--config.model.num_heads=1",
    "--config.model.context_length=64", "--config.model.vocab_multiple=8", "--config.data.tokenizer=bytes+chat",
    "--config.train.tokens=1024", "--config.train.batch_tokens=512", "--config.compute.dtype=float32",
    "--config.optimizer.warmup_tokens=0", "--config.eval.tokens=256", "--config.log.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "any.py").write_text("get_config = __import__('scaling.config', fromlist=['x']).default_config\n")
    assert cli.main(["train", f"--config={folder}/any.py", f"--config.workdir={folder}/run", *KNOBS]) == 0
    return folder


def start(folder, *arguments, **variables):
    """The process and its address."""
    words = [sys.executable, "-m", "scaling", "serve", f"{folder}/run", "--port=0", *arguments]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | variables
    )
    line = process.stdout.readline()
    assert line.startswith("http"), process.stderr.read()
    return process, line.split()[0]


def stop(process):
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == exit_codes.SIGINT and "Traceback" not in said, said


@pytest.mark.slow
def test_from_a_run_to_an_answer(folder):
    process, address = start(folder, f"--draft={folder}/run", SCALING_API_KEY="secret")  # it proposes to itself
    try:
        assert httpx.get(f"{address}v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{address}v1", api_key="secret")
        found = client.chat.completions.create(model="run", messages=[{"role": "user", "content": "x"}], max_tokens=3)
        assert found.usage.completion_tokens <= 3 and found.choices[0].finish_reason in ("stop", "length")
    finally:
        stop(process)


@pytest.mark.slow
def test_a_half_done_ranking_waits_for_the_next_server(folder):
    (folder / "p.txt").write_text("hello\n")
    words = ["--rank=2", f"--prompts={folder}/p.txt", f"--output={folder}/r.jsonl", "--tokens=4"]
    process, address = start(folder, *words)
    try:
        shown = httpx.get(f"{address}rank", timeout=60).json()["item"]
        httpx.post(f"{address}rank/draft", json={"id": shown["id"], "ranks": [2, None]})
        assert cli.main(["serve", f"{folder}/run", "--port=0", *words]) == exit_codes.USAGE  # two on one file
        process.kill()
        process.communicate()
        process, address = start(folder, *words)
        assert httpx.get(f"{address}rank", timeout=60).json()["item"] == shown | {"ranks": [2, None]}
        httpx.post(f"{address}rank/done", json={"id": shown["id"], "ranks": [2, 1]})
        (record,) = map(json.loads, (folder / "r.jsonl").read_text().splitlines())
        assert record["completions"] == shown["answers"] and record["made_by"][0]["model"] == "run"
    finally:
        stop(process)


MISTAKES = [
    (["--api_key="], "API key"),
    (["--api_key=a b"], "API key"),
    (["--port=70000"], "--port=70000"),
    (["--host=nowhere.invalid"], "--host=nowhere.invalid"),
    (["--output=x.jsonl"], "--output belongs to --rank"),
    (["--rank=1"], "--rank=1 must be 2 to 9"),
    (["--rank=2", "--temperature=-1"], "temperature=-1.0"),
    (["--rank=2", "--prompts={0}/none.jsonl"], "none.jsonl"),
    (["--rank=2", "--output={0}/none/r.jsonl"], "does not exist"),
    (["--template={0}/none.jinja"], "none.jinja"),
    (["{0}/run"], "given twice"),
    (["{0}/none"], "none"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(folder, arguments, sentence, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    words = [argument.format(folder) for argument in arguments]
    assert cli.main(["serve", "--port=0", f"{folder}/run", *words]) == exit_codes.USAGE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said and said.startswith("scaling serve: error: ")
    assert sorted(folder.iterdir()) == before


def test_a_taken_port_is_found_before_the_model_is_loaded(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", f"{folder}/none", f"--port={port}"]) == exit_codes.USAGE
    assert f"--port={port}" in capsys.readouterr().err
