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


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the items of a task are asked and scored.

    The fields of a kind are the keys of a task file's table ``[scoring]``; it must have those without a default.

    Attributes:
        gives: facts that an answer has, of ``metrics.FACTS``; its metrics are those that need one of them.
        normalisations: what the key ``normalisation`` may be; the first is the default.
        context_asks: whether the context says what is asked. If not, answers tell the items apart.
        running_text: whether items are texts to be read in windows: of any length, and without demonstrations.
    """

    gives: ClassVar[tuple[str, ...]] = ()
    normalisations: ClassVar[tuple[str, ...]] = ()
    context_asks: ClassVar[bool] = True
    running_text: ClassVar[bool] = False

    @property
    def new_tokens(self) -> int:
        """Tokens that must have room after the prompt, beside those of the options."""
        return 0

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
