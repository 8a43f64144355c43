"""The parametric laws of loss: each maps parameters and a run's size to log loss, with its grid of starting points.

Coefficients are fitted as logarithms (a = log A, b = log B, e = log E), so that every term stays positive and a sum
of terms is a log-sum-exp, which neither overflows nor loses digits (arXiv 2203.15556, section 3.3).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp

# Quantities of a run, each a logarithm: params, tokens, flops, unique (tokens seen once).
Sizes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Form:
    """A law L(sizes; theta).

    Attributes:
        formula: the law as text.
        grid: name -> starting values; the starts are their product, in this order of parameters.
        needs: quantities of a run that it depends on.
        log_loss: (theta [P], sizes [n]) -> log loss [n].
        exponents: parameters that are exponents; their profile, and that of ``e``, is examined.
        logs: parameter -> name of its exponential, as papers print it.
    """

    formula: str
    grid: Mapping[str, tuple[float, ...]]
    needs: tuple[str, ...]
    log_loss: Callable[[Any, Sizes], Any]
    exponents: tuple[str, ...]
    logs: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.grid)

    def starts(self) -> np.ndarray:
        """The whole grid, float64 [starts, P]."""
        return np.array(list(itertools.product(*self.grid.values())))


@functools.cache  # one function a law: the solver compiles once for each
def loss_of(log_loss: Callable[[Any, Sizes], Any]) -> Callable[[Any, Sizes], Any]:
    """The law of loss itself, nats a token, from that of its logarithm."""
    return lambda theta, sizes: jnp.exp(log_loss(theta, sizes))


def _sum(*log_terms: Any) -> Any:
    return logsumexp(jnp.stack(jnp.broadcast_arrays(*log_terms)), axis=0)


@functools.cache
def _power(against: str, irreducible: bool) -> Form:
    def log_loss(theta: Any, sizes: Sizes) -> Any:
        power = theta[0] - theta[1] * sizes[against]
        return _sum(power, theta[2]) if irreducible else power

    grid = {"a": tuple(np.arange(0.0, 30.1, 2.5)), "alpha": (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)}
    letter = {"params": "N", "tokens": "D", "flops": "C"}[against]
    if irreducible:
        return Form(
            f"L = E + A/{letter}^alpha",
            grid | {"e": (-1.0, -0.5, 0.0, 0.5, 1.0)},
            (against,),
            log_loss,
            ("alpha",),
            {"a": "A", "e": "E"},
        )
    return Form(f"L = A/{letter}^alpha", grid, (against,), log_loss, ("alpha",), {"a": "A"})


def _kaplan(theta: Any, sizes: Sizes) -> Any:
    nc, dc, alpha_n, alpha_d = theta
    return alpha_d * _sum(alpha_n / alpha_d * (nc - sizes["params"]), dc - sizes["tokens"])


def _chinchilla(theta: Any, sizes: Sizes) -> Any:
    a, b, e, alpha, beta = theta
    return _sum(a - alpha * sizes["params"], b - beta * sizes["tokens"], e)


def _chinchilla_equal(theta: Any, sizes: Sizes) -> Any:
    a, b, e, alpha = theta
    return _chinchilla((a, b, e, alpha, alpha), sizes)


def _data_constrained(theta: Any, sizes: Sizes) -> Any:
    a, b, e, alpha, beta, log_r_n, log_r_d = theta
    unique = jnp.minimum(sizes["unique"], sizes["tokens"])
    # U_N: the parameters that are compute-optimal for the unique tokens, where alpha A/N^alpha = beta B/D^beta.
    balance = a - b + jnp.log(jnp.maximum(jnp.abs(alpha), 1e-6)) - jnp.log(jnp.maximum(jnp.abs(beta), 1e-6))
    base = jnp.minimum((balance + beta * unique) / jnp.maximum(alpha, 1e-3), sizes["params"])
    params = base + _discounted(sizes["params"] - base, log_r_n)
    tokens = unique + _discounted(sizes["tokens"] - unique, log_r_d)
    return _chinchilla((a, b, e, alpha, beta), {"params": params, "tokens": tokens})


def _discounted(log_ratio: Any, log_decay: Any) -> Any:
    """log of 1 + R*(1 - exp(-R/R*)): the value of R = ratio - 1 repetitions (arXiv 2305.16264, equation 5)."""
    repetitions, decay = jnp.expm1(log_ratio), jnp.exp(log_decay)
    return jnp.log1p(-decay * jnp.expm1(-repetitions / decay))


_EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_COEFFICIENTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
_IRREDUCIBLE = (-1.0, -0.5, 0.0, 0.5, 1.0)
# The 4,500 starts of arXiv 2203.15556, appendix D.3.
_CHINCHILLA_GRID = {
    "a": _COEFFICIENTS,
    "b": _COEFFICIENTS,
    "e": _IRREDUCIBLE,
    "alpha": _EXPONENTS,
    "beta": _EXPONENTS,
}
_LOGS = {"a": "A", "b": "B", "e": "E"}


def form(name: str, *, against: str = "flops", irreducible: bool = True, equal_exponents: bool = False) -> Form:
    """A law by its name.

    Args:
        name: power, kaplan, chinchilla or data_constrained.
        against: the variable of ``power``: params, tokens or flops.
        irreducible: ``power`` has a constant term.
        equal_exponents: ``chinchilla`` with beta = alpha (arXiv 2403.08540, equation 4).

    Raises:
        ValueError: unknown name or variable.
    """
    if name == "power":
        if against not in ("params", "tokens", "flops"):
            raise ValueError(f"--against={against} must be params, tokens or flops")
        return _power(against, irreducible)
    if name == "kaplan":  # arXiv 2001.08361, equation 1.5
        grid = {
            "nc": (20.0, 25.0, 30.0, 35.0, 40.0),
            "dc": (20.0, 25.0, 30.0, 35.0, 40.0),
            "alpha_n": (0.03, 0.08, 0.2, 0.5),
            "alpha_d": (0.03, 0.08, 0.2, 0.5),
        }
        formula = "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
        return Form(formula, grid, ("params", "tokens"), _kaplan, ("alpha_n", "alpha_d"), {"nc": "N_c", "dc": "D_c"})
    if name == "chinchilla" and equal_exponents:
        grid = {k: v for k, v in _CHINCHILLA_GRID.items() if k != "beta"}
        formula = "L = E + A/N^alpha + B/D^alpha"
        return Form(formula, grid, ("params", "tokens"), _chinchilla_equal, ("alpha",), _LOGS)
    if name == "chinchilla":
        formula = "L = E + A/N^alpha + B/D^beta"
        return Form(formula, _CHINCHILLA_GRID, ("params", "tokens"), _chinchilla, ("alpha", "beta"), _LOGS)
    if name == "data_constrained":
        grid = {
            "a": (5.0, 10.0, 15.0),
            "b": (5.0, 10.0, 15.0),
            "e": (0.0, 0.5),
            "alpha": (0.25, 0.5),
            "beta": (0.25, 0.5),
            "log_r_n": (0.5, 2.0, 4.0),
            "log_r_d": (0.5, 2.0, 4.0),
        }
        return Form(
            "L = E + A/N'^alpha + B/D'^beta, D' = U_D (1 + R_D* (1 - exp(-R_D/R_D*))), N' likewise",
            grid,
            ("params", "tokens", "unique"),
            _data_constrained,
            ("alpha", "beta"),
            _LOGS | {"log_r_n": "R_N*", "log_r_d": "R_D*"},
        )
    raise ValueError(f"--form={name} must be power, kaplan, chinchilla, envelope, isoflop or data_constrained")
