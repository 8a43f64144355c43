"""The noise of an objective by its name."""

from scaling.config.schema import Config
from scaling.data.noise.denoising import denoising
from scaling.data.noise.masked import one_text, two_texts
from scaling.data.noise.permutation import permutation
from scaling.data.noise.prefix import prefix
from scaling.data.noise.row import Noise
from scaling.data.noise.spans import span_corruption
from scaling.data.tokenizer_base import Tokenizer

_NOISE = {
    "mlm": one_text,
    "mlm_nsp": two_texts,
    "mlm_sop": two_texts,
    "replaced_token": one_text,
    "span_corruption": span_corruption,
    "denoising": denoising,
    "prefix": prefix,
    "permutation": permutation,
}


def noise_of(config: Config, words: Tokenizer) -> Noise | None:
    """The noise of ``config.data.objective``, which changes the stream of tokens; None = next-token prediction.

    Args:
        config: resolved.
        words: tokenizer.

    Raises:
        ValueError: the tokenizer lacks control tokens that the noise needs, or lengths that do not go together.
    """
    make = _NOISE.get(config.data.objective)
    return make(config, words) if make else None
