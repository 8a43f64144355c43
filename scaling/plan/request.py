"""The request for generation that a plan is made for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for generation.

    Attributes:
        batch_size: number of texts at a time.
        prompt_tokens: tokens of the longest prompt.
        tokens: new tokens for each text.
    """

    batch_size: int = 8
    prompt_tokens: int = 128
    tokens: int = 100

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prompt_tokens", 1), ("tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least {least}")
