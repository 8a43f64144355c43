"""How initial scales, forward multipliers and learning rates depend on width and depth.

``standard`` is GPT-2/3's: nothing depends on width. ``mup`` is the maximal update parametrization for
Adam (arXiv 2203.03466, table 8, with the output multiplier form); ``completep`` adds depth with
alpha = 1 (arXiv 2505.01618, table 1). m_N = d_model / base_width, m_L = num_layers / base_depth; at the
base sizes (and heads of 64 features) all three agree, so hyperparameters tuned there carry over.
"""

import dataclasses
import math

from scaling.config import schema as cfg

# Head width at which muP's 1/d_head attention scale equals the standard 1/sqrt(d_head).
BASE_HEAD = 64


@dataclasses.dataclass(frozen=True)
class Parametrization:
    hidden_std: float  # initial standard deviation of matrices inside blocks
    residual_std: float  # ... of the projections that write to the residual stream
    embedding_std: float
    attention_scale: float  # multiplies q.k
    residual_multiplier: float  # multiplies each sublayer's output
    logit_multiplier: float
    hidden_lr: float  # multiplies the learning rate of matrices inside blocks
    hidden_decay: float  # multiplies weight decay of the same, so that lr * decay stays constant
    hidden_epsilon: float  # multiplies Adam's epsilon of all parameters inside blocks
    embedding_epsilon: float  # multiplies Adam's epsilon of the embeddings


def parametrization(model: cfg.Model) -> Parametrization:
    """Multipliers of a resolved model config."""
    width = 1.0 if model.parametrization == "standard" else model.d_model / model.base_width
    depth = model.num_layers / model.base_depth if model.parametrization == "completep" else 1.0
    hidden_std = model.init_std / math.sqrt(width)
    # CompleteP divides the residual branch itself by m_L, so its init keeps the base depth's scale.
    init_depth = model.base_depth if model.parametrization == "completep" else model.num_layers
    residual = 1 / math.sqrt(2 * init_depth) if model.scale_residual_init else 1.0
    standard = model.parametrization == "standard"
    derived = (
        1 / math.sqrt(model.d_head * (1 + model.positional_scores)) if standard else math.sqrt(BASE_HEAD) / model.d_head
    )
    return Parametrization(
        hidden_std=hidden_std,
        residual_std=hidden_std * residual,
        embedding_std=model.init_std,
        attention_scale=model.attention_scale or derived,
        residual_multiplier=1 / depth,
        logit_multiplier=1 / width / (math.sqrt(model.d_model) if model.scaled_output else 1.0),
        hidden_lr=1 / width,
        hidden_decay=width,
        hidden_epsilon=1 / (width * depth),
        embedding_epsilon=1 / width,
    )
