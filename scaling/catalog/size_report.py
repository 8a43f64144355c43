"""The tables of ``scaling sizes``: the numbers counted here beside those of the papers."""

import json
from typing import Any

from scaling.catalog import families, flops, sizes
from scaling.catalog.sizes import GPT3_TOKENS, Size, parameters

ALL = (*sizes.ALL, *families.ALL)  # GPT's, and those that followed


def row(size: Size) -> dict[str, Any]:
    """All counts for one size, and the paper's numbers (None if the paper does not give them)."""
    model = size.model()
    counted = parameters(model)
    pf_days = flops.pf_days(counted.active)
    train_flops = float(flops.six_n(counted.active) * GPT3_TOKENS)
    return {
        "name": size.name,
        "family": size.family,
        "num_layers": size.num_layers,
        "d_model": size.d_model,
        "num_heads": size.num_heads,
        "d_head": size.d_head,
        "context_length": size.context_length,
        "vocab_size": size.vocab_size,
        "batch_tokens": size.batch_tokens,
        "peak_lr": size.peak_lr,
        "parameters": {
            "all": counted.total,
            "active": counted.active,
            "without_embeddings": counted.without_embeddings,
            "kaplan": counted.kaplan,
            "chinchilla": counted.chinchilla,
            "tree": counted.tree,
        },
        "flops_per_token": {
            "6N": flops.six_n(counted.active),
            "exact": flops.training_per_token(model),
            "exact_forward": flops.forward_per_token(model),
        },
        "pf_days_300B": pf_days,
        "flops_300B": train_flops,
        "paper": {
            "parameters": size.printed_parameters,
            "pf_days": size.printed_pf_days,
            "flops": size.printed_flops,
        },
        "deviation_percent": {
            "parameters": _deviation(counted.total, size.printed_parameters),
            "pf_days": _deviation(pf_days, size.printed_pf_days),
            "flops": _deviation(train_flops, size.printed_flops),
        },
        "note": size.note,
    }


def to_json() -> str:
    """All sizes as an indented JSON list, for programs."""
    return json.dumps([row(size) for size in ALL], indent=2)


def to_text() -> str:
    """Plain text tables of shapes and parameters and of compute, followed by notes."""
    rows = [row(size) for size in ALL]
    shapes = _table(
        "Parameters in millions, by convention",
        "model|layers|d_model|heads|d_head|all|paper|off %|active|no emb.|Kaplan|Chinch.|tree",
        [
            (
                _title(r),
                *(str(r[k]) for k in ("num_layers", "d_model", "num_heads", "d_head")),
                _millions(r["parameters"]["all"]),
                f"{r['paper']['parameters'] / 1e6:,.0f}",
                f"{r['deviation_percent']['parameters']:+.2f}",
                *(
                    _millions(r["parameters"][k])
                    for k in ("active", "without_embeddings", "kaplan", "chinchilla", "tree")
                ),
            )
            for r in rows
        ],
    )
    compute = _table(
        "Training FLOPs a token, and the cost of 300B tokens (6N)",
        "model|6N|exact|exact / 6N|PF-days|paper|off %|FLOPs|paper",
        [
            (
                _title(r),
                f"{r['flops_per_token']['6N']:.3e}",
                f"{r['flops_per_token']['exact']:.3e}",
                f"{r['flops_per_token']['exact'] / r['flops_per_token']['6N']:.3f}",
                f"{r['pf_days_300B']:,.2f}" if r["pf_days_300B"] < 100 else f"{r['pf_days_300B']:,.0f}",
                _or_dash(r["paper"]["pf_days"], "{:,g}"),
                _or_dash(r["deviation_percent"]["pf_days"], "{:+.2f}"),
                f"{r['flops_300B']:.2e}",
                _or_dash(r["paper"]["flops"], "{:.2e}"),
            )
            for r in rows
        ],
    )
    notes: dict[str, list[str]] = {}
    for r in rows:
        if r["note"]:
            notes.setdefault(r["note"], []).append(_title(r))
    remarks = "".join(f"{', '.join(names)}: {note}.\n" for note, names in notes.items())
    return f"{shapes}\n{compute}\n{_LEGEND}\n{remarks}"


_COUNTS = ("active", "without_embeddings", "kaplan", "chinchilla", "tree")
_LEGEND = """\
all: every parameter, vocabulary not padded (the papers' count). active: without the experts that a token does not
take. no emb.: blocks and final norm.
Kaplan: 2 d_model n_layer (2 d_attn + d_ff). Chinch.: Chinchilla's count, which adds the last layer.
tree: the parameters of this code, vocabulary padded. exact: matrix products, with causal attention
counted as half, all layers dense.
"""


def _table(title: str, header: str, rows: list[tuple[str, ...]]) -> str:
    """A table with the first column aligned left and the others right; ``|`` separates the headings."""
    headings = header.split("|")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in (headings, tuple("-" * width for width in widths), *rows)
    ]
    return "\n".join([title, "", *lines, ""])


def _title(row: dict[str, Any]) -> str:
    return row["family"] if row["family"] == "GPT-1" else f"{row['family']} {row['name']}"


def _deviation(value: float, printed: float | None) -> float | None:
    return None if printed is None else 100 * (value / printed - 1)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{1 if count < 1e10 else 0}f}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
