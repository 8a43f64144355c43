"""The golden page of messages, tests/messages.md: mistakes, with the exit code and the sentence that each gets.

    python -m tests.messages

writes it anew, from the checkout's root. Other tests assert names, values and exit codes, and no whole sentence.
"""

import contextlib
import io
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling import cli

PAGE = Path(__file__).with_suffix(".md")
SECTION = "from scaling.config import default_config\ndef get_config():\n    config = default_config()\n"
FILES = {
    "typo.py": SECTION + "    config.model.num_layer = 2\n    return config\n",
    "fails.py": SECTION + "    1 / 0\n    return config\n",
    "syntax.py": SECTION + "    config.seed = = 1\n    return config\n",
    "nothing.py": "x = 1\n",
    "none.py": "def get_config():\n    return None\n",
    "config.yaml": "{}\n",
    "config.json": "{}\n",
    "text.txt": "the end\n",
    "bad.jsonl": '{"text": "a"}\n{"text": \n',
    "wrong.jsonl": '{"text": "a"}\n{"text": 3}\n',
    "latin.txt": b"caf\xe9\n",
    "points.csv": "params,tokens,loss\n1e6,2e7,4.5\n2e6,4e7,4.0\n",
    "negative.csv": "params,tokens,loss\n1e6,2e7,4.5\n2e6,4e7,-3\n",
    "columns.csv": "n,t,l\n1e6,2e7,4.5\n",
    "twice.csv": "params,params,loss\n1e6,2e7,4.5\n",
    "empty.csv": "",
    "fit.json": "{",
    "folder/file": "x\n",
}

# Arguments of `scaling`, by subject. None of them computes anything with JAX, and no sentence is one that Python or
# NumPy makes and another version words otherwise.
CASES = {
    "The command line": [
        "train --foo",
        "train --config",
        "train",
        "sizes --config=x.py",
        "bench",
        "tokenizer train text.txt --vocab_size=many --output=o.model",
        "logits runs/x --output=logits.npy",
    ],
    "Experiment files": [
        "train --config=absent.py",
        "train --config=gpt3/126m",
        "train --config=typo.py",
        "train --config=fails.py",
        "train --config=syntax.py",
        "train --config=nothing.py",
        "train --config=none.py",
        "train --config=config.yaml",
        "train --config=config.json",
    ],
    "Names and types of knobs": [
        "config --config.model.num_layer=2",
        "config --config.modle.num_layers=2",
        "config --config.sed=1",
        "config --config.model=2",
        "config --config.train.tokens=many",
        "config --config.train.tokens=",
        "config --config.train.tokens",
        "config --noconfig.train.tokens",
        "config --config.model.num_layers=1.5",
        "config --config.optimizer.peak_lr=fast",
        "config --config.log.tensorboard=maybe",
    ],
    "Values of knobs": [
        "config --config.optimizer.peak_lr=-1",
        "config --config.optimizer.beta2=1",
        "config --config.optimizer.state_dtype=int4",
        "config --config.model.num_heads=7",
        "config --config.model.norm=middle",
        "config --config.model.parametrization=nup",
        "config --config.model.dropout_residual=1",
        "config --config.compute.dtype=float8",
        "config --config.compute.remat=some",
        "config --config.compute.quantization=int3",
        "config --config.compute.decode_int8=keys",
        "config --config.compute.decode_int8=both --config.compute.quantization=fp8",
        "plan --config=gpt3/125m --topology=v5e:2x2 --config.compute.decode_int8=cache",
        "config --config.train.tokens=0",
        "config --config.train.sequence_length=4096",
        "config --config.train.microbatch_sequences=3",
        "config --config.data.validation_fraction=1",
        "config --config.eval.every_steps=-1",
        "config --config.lora.rank=4",
        "config --config.lora.rank=4 --config.start=runs/x --config.align.layers=3",
        "config --config.checkpoint.choose=best",
        "config --config.checkpoint.choose=reward",
        "config --config.checkpoint.choose=loss --config.eval.every_steps=0",
        "config --config.lora.matrices=q_proj",
        "config --config.lora.alpha=0",
    ],
    "Meshes": [
        "config --devices=0",
        "config --devices=8 --config.mesh.fsdp=3",
        "config --devices=8 --config.mesh.data=1",
        "config --devices=8 --config.mesh.slices=16",
        "config --devices=8 --config.mesh.stage=5",
        "config --devices=2 --config.mesh.tensor=-2",
        "config --devices=2 --config.train.pipeline_microbatches=4",
        "config --devices=2 --config.mesh.stage=2 --config.train.pipeline_microbatches=3",
        "config --devices=4 --config.mesh.context=4 --config.model.dropout_attention=0.1",
    ],
    "Texts and tokens": [
        "tokenize absent.txt --tokenizer=bytes --output=tokens",
        "tokenize folder --tokenizer=bytes --output=tokens",
        "tokenize text.txt --tokenizer=byts --output=tokens",
        "tokenize text.txt --tokenizer=bytes --output=folder",
        "tokenize text.txt --tokenizer=bytes --output=folder/file/tokens",
        "tokenize bad.jsonl --tokenizer=bytes --output=tokens",
        "tokenize wrong.jsonl --tokenizer=bytes --output=tokens",
        "tokenize wrong.jsonl --tokenizer=bytes --output=tokens --text_key=body",
        "tokenize latin.txt --tokenizer=bytes --output=tokens",
        "logits runs/x --ids=absent.npy --output=logits.npy",
        "logits runs/x --ids=text.txt --output=logits.txt",
    ],
    "Laws": [
        "fit absent.csv",
        "fit empty.csv",
        "fit points.csv",
        "fit negative.csv",
        "fit columns.csv",
        "fit columns.csv --params=size",
        "fit twice.csv",
        "fit folder",
        "fit points.csv --form=chinchilla --delta=0",
        "fit points.csv --form=power --curve=akima",
        "fit points.csv --resamples=-1",
        "predict absent.json --flops=1e20",
        "predict fit.json --flops=1e20",
    ],
    "Runs": [
        "plot absent",
        "plot folder",
        "export absent --output=out",
        "report absent",
        "report folder",
        "report folder --compare --output=out",
        "status absent",
        "stop absent",
    ],
}


@contextlib.contextmanager
def _in_a_folder_with_files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name).resolve()
        for path, content in FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        yield folder


def _answer(command: str, folder: Path) -> str:
    """One row of the page: the command, its exit code, what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = cli.main(shlex.split(command))
    sentence = " ".join(said.getvalue().replace(str(folder), "HERE").split()).replace("|", "\\|")
    return f"| `{command}` | {code} | {sentence} |"


def page() -> str:
    """The page as the code makes it now."""
    lines = [
        "# Messages",
        "",
        "Written by `python -m tests.messages`. HERE is the folder that the command runs in.",
        "",
    ]
    with _in_a_folder_with_files() as folder:
        for subject, commands in CASES.items():
            lines += [f"## {subject}", "", "| `scaling` ... | exit code | message |", "|---|---|---|"]
            lines += [_answer(command, folder) for command in commands] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
