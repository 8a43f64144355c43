"""The tokenizer in the metadata of a GGUF file, as the files that a folder of Hugging Face would have."""

import json
from collections.abc import Mapping
from typing import Any

from scaling.data.tokenizer import SPACE

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # llama.cpp's types of tokens, which are sentencepiece's
_KNOWN = (
    "model pre tokens token_type token_type_count scores merges add_bos_token add_eos_token add_sep_token "
    "add_space_prefix remove_extra_whitespaces precompiled_charsmap"
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS, _SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n", r"]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_DIGITS = {"type": "Digits", "individual_digits": True}
_NFC = {"type": "NFC"}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# How text is split before merges, by the name in tokenizer.ggml.pre: the normalizer, what splits beside or instead of
# GPT-2's pattern, and whether a piece that is a token is taken whole. From the tokenizer.json of the models that
# llama.cpp's converter knows by these names.
_PRE: dict[str, tuple[Any, Any, bool]] = {
    "gpt-2": (None, None, False),
    "olmo": (_NFC, None, False),  # GPT-NeoX-20B, Pythia
    "smollm": (None, _DIGITS, False),
    "starcoder": (None, _DIGITS, False),
    "llama-bpe": (None, _split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}{_SPACES}"), True),
    "qwen2": (_NFC, _split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}{_SPACES}"), False),
    "tekken": (None, _split(rf"{_CASED}|\p{{N}}|{_SIGNS}/{_SPACES}"), True),
    "bloom": (None, _split(r" ?[^(\s|.,!?…。，、।۔،)]+"), False),
}
_ADD_START = ("llama-bpe", "tekken")  # begin a text with the token that begins texts, unless told otherwise


def files(metadata: Mapping[str, Any], where: str, rows: int) -> dict[str, bytes]:
    """The files by name: ``tokenizer.json`` or ``tokenizer.model``, ``tokenizer_config.json``, the chat template.

    Args:
        metadata: of the GGUF file.
        where: the file, for messages.
        rows: of the model's table.

    Raises:
        ValueError: no tokenizer, or one of another kind, or with settings that change ids and are not known.
    """
    values = {name.removeprefix(_PREFIX): value for name, value in metadata.items() if name.startswith(_PREFIX)}
    advice = "; name one with --tokenizer"
    for name in values:
        if name not in _KNOWN.split() and not name.endswith(("_token_id", "_token_ids")):
            raise ValueError(f"{where}: {_PREFIX}{name} is not known here, and may change the ids of a text{advice}")
    kind, tokens = values.get("model"), values.get("tokens")
    types = values.get("token_type")
    if not isinstance(tokens, list) or kind not in ("gpt2", "llama"):
        raise ValueError(
            f"{where} has no tokenizer that we read: {_PREFIX}model is {kind!r}; must be gpt2 or llama{advice}"
        )
    if types is None or len(types) != len(tokens) or len(set(tokens)) != len(tokens) or len(tokens) > rows:
        raise ValueError(
            f"{where}: {_PREFIX}tokens must be {rows} different tokens at most, with a token_type for each{advice}"
        )
    if wrong := [kind for kind in types if not 1 <= kind <= 6]:
        raise ValueError(
            f"{where}: {_PREFIX}token_type has {wrong[0]}; each must be a whole number from 1 to 6{advice}"
        )
    if wrong := [byte for byte in values.get("precompiled_charsmap", ()) if not 0 <= byte <= 255]:
        raise ValueError(
            f"{where}: {_PREFIX}precompiled_charsmap has {wrong[0]}; each must be a byte, 0 to 255{advice}"
        )
    named = {kind: _named(values, kind, tokens, where) for kind in ("bos", "eos", "unknown", "padding")}
    if kind == "llama":
        main = {"tokenizer.model": _sentencepiece(values, where + advice)}
        adds = values.get("add_bos_token", True)
    else:
        adds = values.get("add_bos_token", values.get("pre") in _ADD_START)
        main = {"tokenizer.json": _byte_level(values, named["bos"] if adds else None, where, advice)}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast" if kind == "gpt2" else "LlamaTokenizer"}
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    settings |= {names[kind]: token for kind, token in named.items() if token is not None}
    settings |= {"add_bos_token": adds, "clean_up_tokenization_spaces": False}
    made = main | {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        made["chat_template.jinja"] = template.encode()
    return made


def _named(values: Mapping[str, Any], kind: str, tokens: list[str], where: str) -> str | None:
    number = values.get(f"{kind}_token_id")
    if number is not None and not 0 <= number < len(tokens):
        raise ValueError(f"{where}: {_PREFIX}{kind}_token_id={number} is none of the {len(tokens)} tokens")
    return None if number is None else tokens[number]


def _byte_level(values: Mapping[str, Any], start: str | None, where: str, advice: str) -> bytes:
    """``tokenizer.json`` of byte-level BPE; ``start`` begins a text."""
    tokens, types, merges = values["tokens"], values["token_type"], values.get("merges")
    pre = values.get("pre")
    if pre not in _PRE:
        raise ValueError(
            f"{where}: text may be split in a way that is not known here ({_PREFIX}pre is {pre!r}; must be one of "
            f"{', '.join(_PRE)}){advice}"
        )
    pairs = [merge.split(" ") for merge in merges or ()]
    known = set(tokens)
    if merges is None or any(len(pair) != 2 or not {*pair, "".join(pair)} <= known for pair in pairs):
        raise ValueError(f"{where}: {_PREFIX}merges must join two tokens to a third, each{advice}")
    normalizer, splitter, whole = _PRE[pre]
    level = {"type": "ByteLevel", "add_prefix_space": bool(values.get("add_space_prefix", False)), "trim_offsets": True}
    own = splitter is not None and splitter["type"] == "Split"
    steps = [*([splitter] if splitter else []), level | {"use_regex": not own}]
    record: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": types[i] == _CONTROL}
            for i, token in enumerate(tokens) if types[i] in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": _template(start, tokens.index(start)) if start is not None else None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole,
            "vocab": {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED},
            "merges": pairs,
        },
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False).encode()


def _template(start: str, number: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": start, "type_id": 0}}
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, first, other],
        "special_tokens": {start: {"id": start, "ids": [number], "tokens": [start]}},
    }


def _sentencepiece(values: Mapping[str, Any], where: str) -> bytes:
    """``tokenizer.model``: BPE by the scores of the pieces."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    tokens, types, scores = values["tokens"], values["token_type"], values.get("scores")
    if scores is None or len(scores) != len(tokens):
        raise ValueError(f"{where}: {_PREFIX}scores must be one number for each token")
    proto: Any = messages
    model = proto.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        # The converter spells the spaces of these tokens as spaces.
        model.pieces.add(piece=token.replace(" ", SPACE) if kind == _USER_DEFINED else token, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = model.SentencePiece.BYTE in types
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if (number := values.get(f"{key}_token_id")) is not None:
            setattr(trainer, f"{name}_id", number)
            setattr(trainer, f"{name}_piece", tokens[number])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(values.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(values.get("remove_extra_whitespaces", False))
    normalizer.precompiled_charsmap = bytes(values.get("precompiled_charsmap", []))
    return model.SerializeToString()
