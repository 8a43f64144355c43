"""How figures look: fonts, colours that colour-blind readers tell apart, logarithmic axes, and files."""

import base64
import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito's palette.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
INK, PALE = "#222222", "#b5b5b5"
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#777777",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.fontsize": 9,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "#dddddd",
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "scaling",  # the same runs give the same file
}
_DPI = 200


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of a page: name of its files, what it shows in a sentence, and the figure."""

    name: str
    caption: str
    figure: Figure

    def save(self, folder: epath.Path, kinds: Sequence[str] = ("png", "svg")) -> None:
        """Writes ``NAME.png`` and ``NAME.svg``."""
        for kind in kinds:
            (folder / f"{self.name}.{kind}").write_bytes(self.svg if kind == "svg" else self._render(kind))

    @functools.cached_property
    def svg(self) -> bytes:
        return self._render("svg")

    def _repr_png_(self) -> bytes:
        """The figure as a notebook shows it."""
        return self._render("png", _DPI // 2)

    def _render(self, kind: str, dpi: int = _DPI) -> bytes:
        picture = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            metadata = {"Date": None} if kind == "svg" else None
            self.figure.savefig(picture, format=kind, dpi=dpi, metadata=metadata)
        return picture.getvalue()

    def data_uri(self) -> str:
        """The SVG for the ``src`` of an image: identifiers of several figures on a page cannot clash."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@contextlib.contextmanager
def canvas(
    columns: int = 1, width: float = 9.0, height: float = 5.2, rows: int = 1, sharey: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with axes row by row; inches. What is drawn inside the context has the style of the page."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(np.ravel(figure.subplots(rows, columns, sharey=sharey)))


def plain(text: str) -> str:
    """Escapes a text, so that matplotlib does not take parts between two dollar signs for a formula.

    Names of runs, tasks and words are to pass through here on their way into a figure.
    """
    return text.replace("$", r"\$")


def human(value: float, _: Any = None) -> str:
    """12k, 3.5M, 1.2B: at most three digits."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """2.5·10¹³ in mathtext."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = value / 10.0**exponent
    factor = "" if f"{mantissa:.2g}" == "1" else f"{mantissa:.2g}\\cdot"
    return f"${factor}10^{{{exponent}}}$"


def log_axis(axes: Axes, which: str, kind: str, low: float, high: float, label: str) -> None:
    """A logarithmic x or y axis from ``low`` to ``high`` with a few readable ticks.

    Args:
        axes: where.
        which: x or y.
        kind: count (12k, 3M), flops (powers of ten) or loss (plain numbers).
        low: left or lower end.
        high: right or upper end.
        label: of the axis.
    """
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    getattr(axes, f"set_{which}label")(label)
    axis = getattr(axes, f"{which}axis")
    decades = np.log10(high / low)
    if decades < 1.0:
        ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axis.set_major_locator(FixedLocator([tick for tick in ticks if tick > 0]))
        axis.set_minor_locator(NullLocator())
    elif decades < 2.2 and kind != "flops":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0), numticks=20))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(numticks=9))
        axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=99) if decades < 9 else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    formats = {"count": human, "flops": lambda value, _: power_of_ten(value), "loss": lambda value, _: f"{value:.4g}"}
    axis.set_major_formatter(FuncFormatter(formats[kind]))


class Colours:
    """Viridis over the logarithm of a quantity; the brightest yellow is left out, it is hard to see on white."""

    def __init__(self, values: Any):
        low, high = float(np.min(values)), float(np.max(values))
        self.single = high < 1.01 * low
        if self.single:
            low, high = low / 2, high * 2
        self.map = matplotlib.colormaps["viridis"].resampled(256)
        self.map = matplotlib.colors.ListedColormap(self.map(np.linspace(0, 0.92, 256)))
        self._ends = low, high
        self.norm = LogNorm(low, high)

    def __call__(self, value: Any) -> Any:
        return self.map(self.norm(value))

    def bar(self, figure: Figure, axes: Any, label: str, kind: str = "count") -> None:
        """A colour bar beside the axes, with the ticks of ``log_axis``; none where there is one colour only."""
        if self.single:
            return
        bar = figure.colorbar(ScalarMappable(self.norm, self.map), ax=axes, pad=0.015, aspect=32)
        log_axis(bar.ax, "y", kind, *self._ends, label)
        bar.ax.grid(False)
        bar.outline.set_visible(False)


def around(values: Any, margin: float = 0.06) -> tuple[float, float]:
    """Ends of a logarithmic axis with some room on both sides."""
    logs = np.log(np.asarray(values, float)[np.isfinite(values)])
    room = max(margin * float(np.ptp(logs)), (0.4 - float(np.ptp(logs))) / 2, 0.02)
    return float(np.exp(logs.min() - room)), float(np.exp(logs.max() + room))
