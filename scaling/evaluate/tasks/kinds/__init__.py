"""The kinds of tasks, by the name that a task file's ``scoring.kind`` has."""

from scaling.evaluate.tasks.kind import Kind
from scaling.evaluate.tasks.kinds.choices import Choices
from scaling.evaluate.tasks.kinds.completion import Completion
from scaling.evaluate.tasks.kinds.constraints import Constraints
from scaling.evaluate.tasks.kinds.contrast import Contrast
from scaling.evaluate.tasks.kinds.free_form import FreeForm
from scaling.evaluate.tasks.kinds.likelihood import Likelihood
from scaling.evaluate.tasks.kinds.partial import Partial
from scaling.evaluate.tasks.kinds.rated import Rated
from scaling.evaluate.tasks.kinds.stereotype import Stereotype
from scaling.evaluate.tasks.kinds.text import Text
from scaling.evaluate.tasks.kinds.truth import Truth

KINDS: dict[str, type[Kind]] = {
    "choices": Choices,
    "partial": Partial,
    "completion": Completion,
    "free_form": FreeForm,
    "likelihood": Likelihood,
    "text": Text,
    "truth": Truth,
    "stereotype": Stereotype,
    "contrast": Contrast,
    "rated": Rated,
    "constraints": Constraints,
}
