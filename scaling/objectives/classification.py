"""Classification of texts: GPT-1's supervised fine-tuning (Radford et al. 2018, sections 3.2 and 3.3)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import schema as cfg
from scaling.data.batch import Scored
from scaling.model.decoder import Decoder
from scaling.model.layers import dropout
from scaling.objectives.log_probs import Unembedding, weighted_loss
from scaling.objectives.objective import Objective, Sums, forward, states

_NOT_THERE = -1e30  # logit of a choice that an example lacks
_DROPOUT = 1  # what the head's dropout key is folded with


class Form(NamedTuple):
    """How the rows of an example become its answer.

    Attributes:
        rows: of an example, which lie together in a batch.
        classes: that it may have; 0 = the answer is a number.
        chooses: each row is a choice, and the classes are the rows. If not, the final states of the rows are added.
    """

    rows: int
    classes: int
    chooses: bool = False

    @property
    def outputs(self) -> int:
        """Of the model."""
        return 1 if self.chooses else max(1, self.classes)


def answers(model: Decoder, hidden: jax.Array, batch: Scored, form: Form, rate: float, key: Any) -> jax.Array:
    """Logits of the classes, float32 [P, classes], or the number [P, 1], of P = B / form.rows examples.

    Args:
        model: with ``form.outputs``.
        hidden: final hidden states [B, T, D], in the order of the batch's tokens.
        batch: of ``forward``.
        form: see there.
        rate: of the dropout before the head.
        key: dropout key; None = no dropout.
    """
    found = states(hidden, batch)
    there = batch.reads.sum(1).reshape(-1, form.rows) > 0
    if not form.chooses:
        found = found.reshape(-1, form.rows, found.shape[-1]).sum(1)
    made = model.outputs(dropout(found, rate, None if key is None else jax.random.fold_in(key, _DROPOUT)))
    return jnp.where(there, made.reshape(there.shape), _NOT_THERE) if form.chooses else made


def classification(config: cfg.Config, form: Form) -> Objective:
    """The objective: the loss of the task, and ``config.align.lm_weight`` times that of the language model.

    The first is the cross-entropy of the class, or the squared error of the number. The second is the mean over the
    tokens of an example's rows that ``batch.weights`` makes. Both are sums over examples, so accumulation and devices
    change nothing; examples whose first row is padding weigh nothing. "loss" is the first alone.

    With ``config.optimizer.trained="head"`` no gradient flows to anything but the head.
    """
    weight, rate = config.align.lm_weight, config.align.dropout
    how = Unembedding.of(config)

    def objective(model: Decoder, frozen: Any, batch: Scored, key: jax.Array | None) -> Sums:
        hidden, batch, routers = forward(model, batch, key, config.train.pipeline_microbatches)
        if config.optimizer.trained == "head":
            hidden = jax.lax.stop_gradient(hidden)
        first = batch.reads.sum(1).reshape(-1, form.rows)[:, 0] > 0
        labels = (batch.reads * batch.labels).sum(1).reshape(-1, form.rows)[:, 0]
        found = answers(model, hidden, batch, form, rate, key)
        # What is no example may hold anything: it is taken out before it is used.
        found = jnp.where(first[:, None], found, 0.0)
        metrics = _of_classes(found, labels, first, form) if form.classes else _of_numbers(found[:, 0], labels, first)
        minimised = metrics["loss"]
        if weight:
            output = model.output(hidden.dtype)
            if config.optimizer.trained == "head":
                output = jax.lax.stop_gradient(output)
            lm_loss, _ = weighted_loss(hidden, output, batch.targets, batch.weights, how)
            metrics["lm_loss"] = lm_loss
            minimised = minimised + weight * lm_loss
        return Sums(minimised, first.sum().astype(jnp.float32), metrics).with_routers(config.model, routers)

    return objective


def _of_classes(logits: jax.Array, labels: jax.Array, there: jax.Array, form: Form) -> dict[str, jax.Array]:
    """Sums over examples [P]: cross-entropy in nats, right answers, and the confusion matrix of (class, answer)."""
    truth, best = jax.nn.one_hot(labels.astype(jnp.int32), form.classes), logits.argmax(1)
    right = (best == labels.astype(jnp.int32)) & there
    loss = -jnp.where(there, (truth * jax.nn.log_softmax(logits)).sum(1), 0.0)
    sums = {"loss": loss.sum(), "accuracy": right.sum().astype(jnp.float32)}
    if not form.chooses:
        answered = jax.nn.one_hot(best, form.classes) * there[:, None]
        sums["confusion"] = jnp.einsum("pc,pa->ca", truth, answered, precision=jax.lax.Precision.HIGHEST)
    return sums


def _of_numbers(found: jax.Array, labels: jax.Array, there: jax.Array) -> dict[str, jax.Array]:
    """Sums over examples [P]: squared error, and of (x, y, x^2, y^2, xy) with x found and y right."""
    x, y = jnp.where(there, found, 0.0), jnp.where(there, labels, 0.0)
    moments = jnp.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
    return {"loss": jnp.square(x - y).sum(), "moments": moments}


def derived(means: Mapping[str, Any]) -> dict[str, float]:
    """What the means of the metrics amount to: "macro_f1" (a class that neither occurs nor is answered does not count)
    and "matthews", the correlation of classes and answers (for more than two classes: Gorodkin 2004), or "pearson",
    the correlation of the numbers. Correlations are 0 where one side is constant.
    """
    if "confusion" in means:
        table = np.asarray(means["confusion"], np.float64)
        truth, answered = table.sum(1), table.sum(0)
        occurs = truth + answered
        spread = (1 - truth @ truth) * (1 - answered @ answered)  # the table sums to 1
        both = np.trace(table) - truth @ answered
        return {
            "macro_f1": float(np.mean(2 * np.diag(table)[occurs > 0] / occurs[occurs > 0])),
            "matthews": float(both / spread**0.5) if spread > 1e-12 else 0.0,
        }
    if "moments" in means:
        x, y, xx, yy, xy = means["moments"]
        spread = (xx - x * x) * (yy - y * y)
        return {"pearson": float((xy - x * y) / spread**0.5) if spread > 0 else 0.0}
    return {}
