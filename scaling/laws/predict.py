"""Predicts from a fit: the optimal size, the loss with its interval, the cost of the same loss with smaller models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.laws import forms
from scaling.laws.fit import Fit, predict_log_loss
from scaling.laws.frontier import QUANTITIES as FRONTIER_QUANTITIES
from scaling.laws.frontier import Frontier

_SMALLER = (2, 4, 8)  # overtrained models: this many times smaller than the optimal one
_WIDEST = 100.0  # log of the largest N or D that is looked for
_BISECTIONS = 80  # halvings of that range: down to the rounding of float64


def predict(
    fit: Fit | Frontier | Mapping[str, Any],
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    unique: float | None = None,
) -> dict[str, Any]:
    """Predicts from a fit.

    Of a law of N and D, two of the three sizes give the loss (C = 6 N D), one gives the compute-optimal run of that
    budget, size or length. Of a law of one variable, that variable gives the loss. Of an envelope or isoFLOP fit,
    ``flops`` gives the optimal run.

    Args:
        fit: of ``fit_law``, ``isoflop`` or ``envelope``, or the dict of ``load_fit``.
        flops: training FLOPs.
        params: parameters, counted as in the fit.
        tokens: training tokens.
        unique: tokens before the data repeats, for ``data_constrained``; None = never.

    Returns:
        Quantity -> ``{"value", "low", "high"}`` (95 % interval) for flops, params, tokens, loss as they apply;
        ``overtrained``: smaller models that reach the same loss.

    Raises:
        ValueError: sizes that the law cannot use, or no optimum.
    """
    if not isinstance(fit, Mapping):
        fit = dataclasses.asdict(fit)
    given = {k: v for k, v in {"flops": flops, "params": params, "tokens": tokens}.items() if v is not None}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"--{name}={value} must be positive")
    if fit["form"] in ("envelope", "isoflop"):
        return _frontier(fit, given)
    law = forms.form(fit["form"], **fit["options"])
    # The first row is the fit itself, the others its resamples.
    thetas = np.array([list(fit["theta"].values()), *fit["draws"]])
    if fit["form"] == "power":
        (variable,) = law.needs
        if set(given) != {variable}:
            raise ValueError(f"{law.formula} predicts from --{variable} alone")
        log_loss = predict_log_loss(law, thetas, {variable: np.log([given[variable]])})[:, 0]
        return {variable: _exact(given[variable]), "loss": _interval(log_loss)}
    if len(given) not in (1, 2):
        raise ValueError("give one of --flops, --params, --tokens for the optimal run, or two of them for its loss")
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return _Runs(law, jnp.asarray(thetas), unique).predict(given)


class _Runs:
    """Runs of N parameters and D tokens under a law with every row of ``thetas`` [rows, P]."""

    def __init__(self, law: forms.Form, thetas: Any, unique: float | None):
        self.law, self.thetas = law, thetas
        self.log_unique = np.log(unique) if unique else _WIDEST

    def log_loss(self, theta: Any, n: Any, d: Any) -> Any:
        sizes = {"params": n, "tokens": d, "unique": jnp.minimum(self.log_unique, d)}
        return self.law.log_loss(theta, {quantity: sizes[quantity] for quantity in self.law.needs})

    def predict(self, given: Mapping[str, float]) -> dict[str, Any]:
        n, d = self._run({name: float(np.log(value)) for name, value in given.items()})
        if not np.isfinite(n[0]) or not np.isfinite(d[0]):
            raise ValueError("the law has no compute-optimal run there; give two of --flops, --params, --tokens")
        loss = np.asarray(jax.vmap(self.log_loss)(self.thetas, n, d))
        result = {"flops": n + d + np.log(6), "params": n, "tokens": d, "loss": loss}
        answer: dict[str, Any] = {
            name: _exact(given[name]) if name in given else _interval(values) for name, values in result.items()
        }
        if len(given) == 1:
            answer["overtrained"] = self._overtrained(float(n[0]), float(result["flops"][0]), float(loss[0]))
        return answer

    def _run(self, given: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """log N and log D of each row: as given, or the optimum between more parameters and more tokens."""
        n, d, c = (given.get(name) for name in ("params", "tokens", "flops"))
        if c is not None and n is not None:
            d = c - np.log(6) - n
        elif c is not None and d is not None:
            n = c - np.log(6) - d
        rows = np.zeros(len(self.thetas))
        if n is not None and d is not None:
            return rows + n, rows + d
        gradient = jax.grad(self.log_loss, (1, 2))

        def gain(theta: Any, n: Any, d: Any) -> Any:
            by_params, by_tokens = gradient(theta, n, d)
            return by_params - by_tokens  # negative: more parameters would reduce the loss more

        if n is not None:  # along D the sign is reversed: with few tokens, more tokens would reduce it more
            found = self._crossing(lambda theta, d: -gain(theta, n, d), _WIDEST)
            return rows + n, found
        if d is not None:
            found = self._crossing(lambda theta, n: gain(theta, n, d), _WIDEST)
            return found, rows + d
        found = self._crossing(lambda theta, n: gain(theta, n, c - np.log(6) - n), c - np.log(6))
        return found, c - np.log(6) - found

    def _crossing(self, function: Callable[[Any, Any], Any], high: float) -> np.ndarray:
        """Where a function of (theta, x), negative at x = 0 and positive at ``high``, crosses 0; NaN where it does not.

        Returns:
            [rows].
        """

        def bisect(theta: Any) -> Any:
            def halve(_: int, ends: Any) -> Any:
                low, high = ends
                middle = (low + high) / 2
                below = function(theta, middle) < 0
                return jnp.where(below, middle, low), jnp.where(below, high, middle)

            low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros(()), jnp.full((), high)))
            return jnp.where((function(theta, 0.0) < 0) & (function(theta, high) > 0), low, jnp.nan)

        return np.asarray(jax.vmap(bisect)(self.thetas))

    def _overtrained(self, n: float, c: float, loss: float) -> list[dict[str, Any]]:
        """Models smaller than exp(n), with the tokens and FLOPs to reach the same loss (None: they never do)."""
        rows = []
        for factor in _SMALLER:
            size = n - np.log(factor)

            def margin(theta: Any, d: Any, size: float = size) -> Any:
                return loss - self.log_loss(theta, size, d)

            d = self._crossing(margin, _WIDEST)[0]
            reached = bool(np.isfinite(d))
            rows.append(
                {
                    "params": float(np.exp(size)),
                    "tokens": float(np.exp(d)) if reached else None,
                    "flops_ratio": float(np.exp(size + d + np.log(6) - c)) if reached else None,
                }
            )
        return rows


def _frontier(fit: Mapping[str, Any], given: Mapping[str, float]) -> dict[str, Any]:
    if set(given) != {"flops"}:
        raise ValueError(f"the {fit['form']} fit predicts from --flops alone")
    laws = np.array([list(fit["theta"].values()), *fit["draws"]])
    values = laws[:, 0::2] + laws[:, 1::2] * np.log(given["flops"])
    return {"flops": _exact(given["flops"])} | {
        quantity: _interval(values[:, i]) for i, quantity in enumerate(FRONTIER_QUANTITIES)
    }


def _exact(value: float) -> dict[str, float]:
    return {"value": float(value), "low": float(value), "high": float(value)}


def _interval(logs: np.ndarray) -> dict[str, float]:
    """The first of logarithms [1 + resamples], with the 95 % percentile interval of the finite others."""
    finite = logs[1:][np.isfinite(logs[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (logs[0], logs[0])
    return {"value": float(np.exp(logs[0])), "low": float(np.exp(low)), "high": float(np.exp(high))}
