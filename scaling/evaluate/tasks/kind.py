"""What a kind of task is. Each kind is a class in ``kinds/``; ``kinds.KINDS`` names them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.request import Item, Rendered, Request

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers

# What the text of a key of [scoring] means; ``checks`` refuses templates without fields and malformed patterns.
Template = Annotated[str, "template"]
Texts = Annotated[str | tuple[str, ...], "texts"]  # templates, or the name of a field that is a list
FieldName = Annotated[str, "field"]
Pattern = Annotated[str, "pattern"]  # a regular expression

Watch = Callable[[int], Any]  # is told how many items are done
Rate = Callable[[Sequence[str]], Sequence[float]]  # texts to the probability of a class of each, or a number


@dataclasses.dataclass(frozen=True)
class Writing:
    """How answers are generated: greedily, by sampling, or by beam search."""

    tokens: int  # at most; half of the context if that is less
    stop: tuple[str, ...] = ()  # texts that end an answer
    samples: int = 1  # of each item
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the items of a task are asked and scored.

    The fields of a kind are the keys of a task file's table ``[scoring]``; it must have those without a default.

    Attributes:
        gives: facts that an answer has, of ``metrics.FACTS``; its metrics are those that need one of them.
        normalisations: what the key ``normalisation`` may be; the first is the default.
        context_asks: whether the context says what is asked. If not, answers tell the items apart.
        running_text: whether items are texts of any length, to be read in windows.
        in_dialogue: whether the context can be said by a user, and the answer by an assistant.
    """

    gives: ClassVar[tuple[str, ...]] = ()
    normalisations: ClassVar[tuple[str, ...]] = ()
    context_asks: ClassVar[bool] = True
    running_text: ClassVar[bool] = False
    in_dialogue: ClassVar[bool] = True

    @property
    def new_tokens(self) -> int:
        """Tokens that must have room after the prompt, beside those of the options."""
        return 0

    @property
    def demonstrated(self) -> bool:
        """Whether an item with its answer can be an example for another; if not, shots are always 0."""
        return not self.running_text

    @property
    def rated_by(self) -> str:
        """The class whose probability a classifier must give of each answer; "" if none is needed."""
        return ""

    def check(self) -> str:
        """What is wrong with values of keys that belong together; "" if nothing is."""
        return ""

    def render(self, context: str, item: Item) -> Rendered:
        """An item as text, after its context, which is rendered already.

        Raises:
            ValueError: a text that cannot be scored; names the record.
        """
        raise NotImplementedError

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """What the model answers, with its facts, in the order of the items; and notes for the user.

        Raises:
            ValueError: an item that the model cannot read.
        """
        raise NotImplementedError

    def chance(self, items: Sequence[Request]) -> float | None:
        """The accuracy of guessing; None without options to guess from."""
        return None
