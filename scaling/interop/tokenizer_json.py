"""A ``tokenizer.json`` of Hugging Face for a tokenizer of ours, with the same ids for the same text.

One exception: a real U+2581 in a text, which sentencepiece's own files spell like a space.
"""

import itertools
import json
from typing import Any

from scaling.data.chat_tokenizer import END_OF_TURN
from scaling.data.control_tokenizer import ControlTokenizer
from scaling.data.json_tokenizer import SETTINGS, TEMPLATE, JsonTokenizer, parsed
from scaling.data.reduced_tokenizer import ReducedTokenizer
from scaling.data.tokenizer import (
    END_OF_TEXT,
    SPACE,
    BPETokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    byte_of_character,
)

_LOWEST = 2**31


def files(words: Tokenizer) -> dict[str, bytes]:
    """The files by name: ``tokenizer.json``, and those that belong beside it.

    Raises:
        ValueError: no such file can say what the tokenizer does.
    """
    if isinstance(words, JsonTokenizer):
        return {"tokenizer.json": words.content, **words.beside()}
    if isinstance(words, ControlTokenizer):
        return _with_controls(words)
    if isinstance(words, ReducedTokenizer):
        raise ValueError(
            f"tokenizer {words.name!r} is a part of another one, which tokenizer.json cannot say; a model that has it "
            "serves as a draft, and is read from its run directory"
        )
    if isinstance(words, SentencePieceTokenizer):
        model = _proto(words)
        if not _is_plain(model):  # transformers converts it itself
            return {"tokenizer.model": words.file()[1]}
        parts = _of_sentencepiece(model)
    else:
        parts = _of_bytes(words.ranks if isinstance(words, BPETokenizer) else {bytes([i]): i for i in range(256)})
    special = {"id": words.eot, "content": spelling(words), "special": True}
    added = [special, *parts.pop("added_tokens", [])]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    record: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(({"special": False, **flags, **token} for token in added), key=lambda x: x["id"]),
        "normalizer": None,
        "post_processor": None,
        **parts,
    }
    return {"tokenizer.json": json.dumps(record, ensure_ascii=False).encode()}


def _with_controls(words: ControlTokenizer) -> dict[str, bytes]:
    """The files of the text's tokenizer with the control tokens added, each a special token.

    Raises:
        ValueError: these files have no place for them.
    """
    made = files(words.base)
    if "tokenizer.json" not in made:
        raise ValueError(
            f"tokenizer {words.name!r} cannot be written: transformers converts {words.base.name!r} itself"
        )
    record = json.loads(made["tokenizer.json"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    controls = sorted((i, token) for token, i in words.controls.items() if i >= words.base.vocab_size)
    record["added_tokens"] += [{"id": i, "content": token, **flags} for i, token in controls]
    made["tokenizer.json"] = json.dumps(record, ensure_ascii=False).encode()
    if (settings := made.get(SETTINGS)) and END_OF_TURN in words.controls:
        values = parsed(words.name, settings) | {"eos_token": END_OF_TURN, "chat_template": words.chat_template}
        made[SETTINGS] = json.dumps(values, indent=2).encode()
    return {name: content for name, content in made.items() if name != TEMPLATE}


def spelling(words: Tokenizer) -> str:
    """How the end of text is spelled in these files."""
    if isinstance(words, ControlTokenizer):
        return spelling(words.base)
    if isinstance(words, JsonTokenizer):
        return words.eot_token
    return _proto(words).pieces[words.eot].piece if isinstance(words, SentencePieceTokenizer) else END_OF_TEXT


def _of_bytes(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Byte-level BPE that splits text as GPT-2 does."""
    character = {byte: character for character, byte in byte_of_character().items()}

    def spelled(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    merges = [
        [spelled(part) for part in _last_merge(token, ranks)]
        for token in sorted(ranks, key=lambda token: ranks[token])
        if len(token) > 1
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {spelled(token): rank for token, rank in ranks.items()}, "merges": merges},
    }


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts of which a token is made, by the merges that were learned before it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        ids = [ranks.get(one + other, _LOWEST) for one, other in itertools.pairwise(parts)]
        ids = [rank if rank < ranks[token] else _LOWEST for rank in ids]
        at = ids.index(min(ids))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _proto(words: SentencePieceTokenizer) -> Any:
    """The model's message: pieces with scores and types, and how text is normalised."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    message: Any = messages
    return message.ModelProto.FromString(words.file()[1])


def _is_plain(model: Any) -> bool:
    """Whether the model is BPE on the text as it is, as ``scaling tokenizer train`` makes it."""
    rules = model.normalizer_spec
    changes = rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces
    return model.trainer_spec.model_type == model.trainer_spec.BPE and not changes and rules.escape_whitespaces


def _of_sentencepiece(model: Any) -> dict[str, Any]:
    """BPE by scores, with bytes for what has no piece, and pieces that are found in the text before all else."""
    kind = model.SentencePiece
    place = {each.piece: i for i, each in enumerate(model.pieces) if each.type == kind.NORMAL}
    merges = []
    for piece, i in place.items():
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in splits if pair[0] in place and pair[1] in place]
        merges += [(-model.pieces[i].score, place[one], place[other], [one, other]) for one, other in known]
    own = [{"id": i, "content": each.piece} for i, each in enumerate(model.pieces) if each.type == kind.USER_DEFINED]
    return {
        "added_tokens": own,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": next((each.piece for each in model.pieces if each.type == kind.UNKNOWN), None),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {each.piece: i for i, each in enumerate(model.pieces)},
            "merges": [pair for *_, pair in sorted(merges)],
        },
    }
