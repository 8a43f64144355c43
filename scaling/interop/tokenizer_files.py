"""What lies beside the weights of a Hugging Face folder: the tokenizer's files, and which ids are special.

A run that was imported keeps the files of the folder it came from, unchanged, in ``huggingface/``, and gives them to
the folders that it is exported to. For a run that was trained here from its first step, a ``tokenizer.json`` is made.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from scaling.config import schema as cfg
from scaling.data.chat.template import Chat
from scaling.data.chat_tokenizer import END_OF_TURN
from scaling.data.json_tokenizer import SETTINGS, parsed
from scaling.data.tokenizer import Tokenizer
from scaling.interop import tokenizer_json
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.config_json import read_config_json
from scaling.runs.paths import TEMPLATE

log = logging.getLogger(__name__)

KEPT = "huggingface"  # folder of an imported run
GENERATION = "generation_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")  # where the template is not in the settings
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe",
    GENERATION,
)  # fmt: skip
NO_TOKENIZER = ("config.json", GENERATION)  # kept with another tokenizer than the folder's, too
# transformers takes ids of its own for those of a decoder behind an encoder that are left out.
_SPECIAL = (
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Beside:
    """What a folder is written with.

    Attributes:
        files: content by name.
        config: keys of config.json beside those of the model: special ids.
        model_type: the family that the model was imported as; "" = none.
    """

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_type: str = ""


NOTHING = Beside()


def of_folder(folder: Path | epath.Path) -> dict[str, bytes]:
    """The files of a Hugging Face folder that an imported run keeps."""
    return {name: (folder / name).read_bytes() for name in ("config.json", *FILES) if (folder / name).is_file()}


def own_tokenizer(folder: str | os.PathLike[str]) -> str:
    """What ``tokenizer.load`` reads a Hugging Face folder's own tokenizer by.

    Raises:
        ValueError: it has none that we read.
    """
    folder = Path(folder)
    pairs = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
    in_pairs = any(all((folder / file).exists() for file in files) for files in pairs)
    # Later models have files of these names, too, but split text by other patterns; their tokenizer.json says how.
    if in_pairs and (read_config_json(folder).get("model_type") == "gpt2" or not (folder / "tokenizer.json").exists()):
        return os.fspath(folder)
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
        if (folder / name).exists():
            return os.fspath(folder / name)
    raise ValueError(
        f"{os.fspath(folder)} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json and merges.txt); name "
        "one with --tokenizer, such as --tokenizer=gpt2"
    )


def of_run(run_dir: str | os.PathLike[str], values: Mapping[str, Any], model: cfg.Model) -> Beside:
    """What a run's folder is written with.

    Args:
        run_dir: of ``scaling train`` or ``scaling import``.
        values: of its config.json.
        model: resolved.

    Raises:
        ValueError: the run's tokenizer is damaged, or larger than the model's table.
    """
    beside, own = _of_tokenizer(run_dir, values, model), epath.Path(run_dir) / TEMPLATE
    if not beside.files or not own.exists():
        return beside
    template = own.read_text(encoding="utf-8")
    end = Chat(_of(run_dir, values, model), template).end
    files = _framed(beside.files, template)
    if GENERATION in files:  # transformers takes these ids then, and not those of config.json
        settings = parsed(GENERATION, files[GENERATION])
        settings["eos_token_id"] = _ends(end, settings.get("eos_token_id", beside.config.get("eos_token_id")))
        files[GENERATION] = (json.dumps(settings, indent=2) + "\n").encode()
    config = {**beside.config, "eos_token_id": _ends(end, beside.config.get("eos_token_id"))}
    return dataclasses.replace(beside, files=files, config=config)


def _ends(end: int, before: Any) -> int | list[int]:
    """``eos_token_id``: the token that ends a turn, and those that ended a text before. A list if there are several.

    The tokenizer's ``eos_token`` stays: the template may refer to it, and was rendered with it in training.
    """
    others = [token for token in (before if isinstance(before, list) else [before]) if token not in (None, end)]
    return [end, *others] if others else end


def _framed(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Files of a tokenizer with another chat template."""
    found = {name: content for name, content in files.items() if name not in _TEMPLATES}
    if SETTINGS not in found:
        return found | {_TEMPLATES[0]: template.encode()}
    settings = parsed(SETTINGS, found[SETTINGS]) | {"chat_template": template}
    return found | {SETTINGS: json.dumps(settings, indent=2).encode()}


def _of_tokenizer(run_dir: str | os.PathLike[str], values: Mapping[str, Any], model: cfg.Model) -> Beside:
    kept = epath.Path(run_dir) / KEPT
    if kept.is_dir():
        before = read_config_json(kept)
        files = {name: content for name, content in of_folder(kept).items() if name != "config.json"}
        ids = {key: before[key] for key in _SPECIAL if key in before}
        if files.keys() - {GENERATION}:
            return Beside(files, ids, str(before.get("model_type", "")))
        return Beside(files | _made(_of(run_dir, values, model), model), ids, str(before.get("model_type", "")))
    try:
        words = _of(run_dir, values, model)
    except OSError as error:
        log.warning("the folder gets no tokenizer: %s", error)
        return NOTHING
    end = words.controls.get(END_OF_TURN, words.eot)
    ids = {"bos_token_id": words.eot, "eos_token_id": end}
    if model.encoder_layers:
        ids |= dict.fromkeys(("decoder_start_token_id", "pad_token_id"), words.decoder_start)
        ids |= dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"))
    return Beside(_made(words, model), ids)


def _of(run_dir: str | os.PathLike[str], values: Mapping[str, Any], model: cfg.Model) -> Tokenizer:
    words = run_tokenizer.load(run_dir, values)
    if words.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer {words.name!r} has {words.vocab_size} tokens, but {os.fspath(run_dir)} only {model.vocab_size}"
        )
    return words


def _made(words: Tokenizer, model: cfg.Model) -> dict[str, bytes]:
    """The files of a tokenizer that transformers reads."""
    made = tokenizer_json.files(words)
    if "tokenizer_config.json" not in made:
        special = tokenizer_json.spelling(words)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast" if "tokenizer.json" in made else "LlamaTokenizer",
            "model_max_length": model.context_length,
            "bos_token": special,
            "eos_token": special,
            "clean_up_tokenization_spaces": False,
        }
        if END_OF_TURN in words.controls:
            settings |= {"eos_token": END_OF_TURN, "chat_template": words.chat_template}
        made["tokenizer_config.json"] = (json.dumps(settings, indent=2) + "\n").encode()
    return made
