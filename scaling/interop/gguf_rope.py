"""LLaMA 3's scaling of rotary positions, from the tensor of factors in which GGUF files hold it."""

import math
from typing import Any

import numpy as np

# Every published model of LLaMA 3 has these; of a file, only the factors can be seen.
_LOW, _HIGH, _LENGTH = 1.0, 4.0, 8192


def of_factors(factors: np.ndarray, theta: float, where: str) -> dict[str, Any]:
    """The ``rope_scaling`` that these factors of the wavelengths come from.

    Args:
        factors: float32 [K / 2].
        theta: base of the rates.
        where: the file, for messages.

    Raises:
        ValueError: they come from another scaling than LLaMA 3's, or from other bounds than its 1 and 4.
    """
    stored = np.asarray(factors, np.float64)
    wavelengths = 2 * math.pi * theta ** (np.arange(stored.size) / stored.size)
    factor = float(stored.max())
    between = (stored > 1) & (stored < factor)
    lengths = [_LENGTH]
    if between.any() and factor > 1:  # where the factor lies between its bounds, it tells the length
        at = int(np.argmax(between))
        smooth = (factor / stored[at] - 1) / (factor - 1)
        lengths.append(round(wavelengths[at] * (_LOW + smooth * (_HIGH - _LOW))))
    for length in lengths:
        if np.allclose(_factors(wavelengths, factor, length), stored, rtol=1e-5):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": length,
            }
    raise ValueError(
        f"{where}: rope_freqs.weight holds no factors of LLaMA 3's scaling, the only one that is supported"
    )


def _factors(wavelengths: np.ndarray, factor: float, length: int) -> np.ndarray:
    smooth = np.clip((length / wavelengths - _LOW) / (_HIGH - _LOW), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
