"""What ``config.compute.remat`` says: which tensors are kept for the backward pass, and in how many layers."""

import dataclasses
import math
import re

from scaling.config.refusal import nearest_multiples, refused
from scaling.config.schema import Config, Model

# Kinds of tensor that a layer may keep, as they are named in ``compute.remat`` and in the program: queries, keys and
# values; what attention makes of them, with the sums of its softmax; the residual stream after attention; the products
# of the MLP before its activation.
QKV, ATTENTION, SUM, HIDDEN = KINDS = ("qkv", "attention", "sum", "hidden")
# Mean and variance of norms, two numbers a token, are kept wherever anything is.
NORMS = "norms"
# The sums of attention's softmax, a number a token and head, are kept with its result, and stay on the chip: the
# backward pass reads them first, and so would wait for the larger arrays before them on the way back from the host.
# Only the library's kernel, for rows too long for ours, gives both one name.
SOFTMAX = "softmax"
ALL = "projections"  # all kinds together
AUTO = "auto"
NOTHING_TWICE = ("none", AUTO)  # until devices are known, ``auto`` is as none
PLAIN = ("none", "dots", "full")  # policies without kinds
HOST = "@host"  # after a kind: it is kept in the memory of the host
FORM = (
    "must be one of none, dots, projections, full, auto, or kinds of tensor to keep, of "
    f"{', '.join(KINDS)}, such as 'qkv+sum'; '@host' after a kind or projections keeps it in the host's memory, and "
    "':16' at the end keeps in the first 16 layers only"
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the layers keep beside their input.

    Attributes:
        kinds: of ``KINDS``, in their order; empty = nothing.
        layers: how many layers, the first of the stack, keep it; the others keep nothing. None = all.
        host: those of ``kinds`` that lie in the memory of the host until the backward pass needs them.
    """

    kinds: tuple[str, ...]
    layers: int | None = None
    host: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The shortest text that ``parse`` reads as this."""
        if not self.kinds or self.layers == 0:
            return "full"
        kinds = "+".join(f"{kind}{HOST if kind in self.host else ''}" for kind in self.kinds)
        if self.kinds == KINDS and self.host in ((), KINDS):
            kinds = f"{ALL}{HOST if self.host else ''}"
        return kinds if self.layers is None else f"{kinds}:{self.layers}"

    @property
    def here(self) -> list[str]:
        """Names of the tensors that are kept where they are made."""
        sums = [SOFTMAX] if ATTENTION in self.kinds else []
        return [*(kind for kind in self.kinds if kind not in self.host), *sums, NORMS]

    def share(self, kind: str, num_layers: int) -> float:
        """Of the layers of a stack, those that keep tensors of a kind."""
        if kind not in self.kinds:
            return 0.0
        return 1.0 if self.layers is None else min(1.0, self.layers / num_layers)


def parse(remat: str) -> Kept | None:
    """The kinds and layers of a value of ``compute.remat``; None of none, dots and auto, which have no kinds.

    Raises:
        ValueError: another text.
    """
    if remat == "full":
        return Kept(())
    if remat in PLAIN or remat == AUTO:
        return None
    found = re.fullmatch(r"([a-z+@]+)(?::(0|[1-9]\d{0,8}))?", remat)
    given = found[1].split("+") if found else []
    names = [name.removesuffix(HOST) for name in given]
    if names == [ALL]:
        given, names = [f"{kind}{given[0].removeprefix(ALL)}" for kind in KINDS], list(KINDS)
    if not found or len(set(names)) < len(names) or not set(names) <= set(KINDS):
        raise refused("compute.remat", remat, FORM)
    kinds = tuple(kind for kind in KINDS if kind in names)
    host = tuple(kind for kind in kinds if f"{kind}{HOST}" in given)
    return Kept(kinds, None if found[2] is None else int(found[2]), host)


def all_keep(remat: str, kind: str) -> bool:
    """Whether every layer keeps a kind of tensor on the device."""
    kept = parse(remat)
    if kept is None:
        return remat in NOTHING_TWICE
    return kind in kept.kinds and kind not in kept.host and kept.layers is None


def uses_host(remat: str) -> bool:
    """Whether a value of ``compute.remat`` keeps tensors in the memory of the host."""
    kept = parse(remat)
    return kept is not None and bool(kept.host)


def divisible(config: Config) -> str:
    """Why the layers of a config cannot be parted into some that keep and some that do not; empty if they can."""
    if config.mesh.stage > 1:
        return f"config.mesh.stage={config.mesh.stage}: a stage of a pipeline keeps the same of all its layers"
    if config.model.layer_groups:
        return f"config.model.layer_groups={config.model.layer_groups}: layers that share weights keep the same"
    if config.model.segment_length or config.model.positions == "xlnet":
        return "segments or two streams: all layers keep the same"
    if config.model.encoder_layers:
        return f"config.model.encoder_layers={config.model.encoder_layers}: both stacks keep the same of all layers"
    return ""


def period(model: Model) -> int:
    """After how many layers attention pattern and experts repeat; the stack can be parted between such periods."""
    return math.lcm(len(model.attention_pattern), model.experts.every if model.experts.count else 1)


def check(config: Config) -> None:
    """Refuses what is no policy, and first layers where the stack cannot be parted after them.

    Raises:
        ValueError: the policy cannot be used.
    """
    remat = config.compute.remat
    kept = parse(remat)
    if kept is not None and kept.kinds == (SUM,) and config.model.parallel != "no":
        right = f"must keep another kind, too: there is no sum with config.model.parallel={config.model.parallel!r}"
        raise refused("compute.remat", remat, right)
    if kept is not None and kept.host and config.mesh.stage > 1:
        raise refused("compute.remat", remat, f"must not name {HOST} with config.mesh.stage={config.mesh.stage}")
    if kept is None or kept.layers is None:
        return
    if why := divisible(config):
        raise refused("compute.remat", remat, f"must not name a number of layers with {why}")
    if kept.layers > config.model.num_layers:
        right = f"must name at most the {config.model.num_layers} layers of config.model.num_layers"
        raise refused("compute.remat", remat, right)
    if kept.layers % (each := period(config.model)):
        near = nearest_multiples(kept.layers, each)
        raise refused(
            "compute.remat", remat, f"must name a multiple of the {each} layers of a period, as {near} would be"
        )
