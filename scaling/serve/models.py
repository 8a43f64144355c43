"""The models that a server has."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scaling.data.chat.template import Chat
from scaling.generate.continuous import Engine
from scaling.generate.draft import load_draft
from scaling.generate.generator import Generator
from scaling.interop.served import load_decoder


@dataclasses.dataclass(frozen=True)
class Model:
    """A model by its name.

    Attributes:
        name: as clients give it.
        generator: it.
        chat: its template; None if it has none.
        without_chat: why.
        engine: continues its texts by continuous batching; None = each request is computed by itself.
    """

    name: str
    generator: Generator
    chat: Chat | None
    without_chat: str = ""
    engine: Engine | None = None

    @property
    def context(self) -> int:
        """Tokens that it reads and writes together."""
        return self.generator.config.context_length


def load(
    paths: Sequence[str],
    template: str,
    dtype: str,
    mesh: str,
    draft: str | None = None,
    draft_tokens: int = 4,
    int8: str = "none",
) -> dict[str, Model]:
    """Models by name: the last part of the path, or the whole path where two have the same.

    Args:
        paths: run directories or Hugging Face folders.
        template: of all of them; empty = their own.
        dtype: of the matrix products.
        mesh: as of ``load_decoder``.
        draft: a small model that proposes tokens to each of them (``generate.speculative``); None = plain decoding.
        draft_tokens: that it proposes at a time.
        int8: as of ``load_decoder``, for model and draft.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a model that cannot be used, or the same one twice.
    """
    models: dict[str, Model] = {}
    short = [Path(path).resolve().name for path in paths]
    for path, name in zip(paths, short, strict=True):
        served = load_decoder(path, None, mesh, dtype, int8=int8)
        small = None if draft is None else load_draft(draft, served, draft_tokens, axes=mesh, dtype=dtype, int8=int8)
        generator = Generator(served.network, served.params, served.words, served.mesh, small)
        chat, reason = None, ""
        try:
            chat = served.chat(template)
        except ValueError as error:
            if template:
                raise
            reason = str(error)
        name = path if short.count(name) > 1 else name
        if name in models:
            raise ValueError(f"{path} is given twice")
        engine = Engine(generator) if Engine.can_serve(generator) else None
        models[name] = Model(name, generator, chat, reason, engine)
    return models
