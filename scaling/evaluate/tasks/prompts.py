"""Makes requests of items: zero-, one- and few-shot prompts, the GPT-3 way (section 2.4).

Demonstrations are drawn at random from the training split, anew for each item, by the caller's seed and the item's id.
The first k of K demonstrations are those of k shots, and the last are left off if they do not fit the context. So
numbers of shots can be compared.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Protocol

from scaling.evaluate.tasks.items import Items, read_items, render_item
from scaling.evaluate.tasks.request import Item, Option, Rendered, Request
from scaling.evaluate.tasks.task import Prompt, Task
from scaling.evaluate.tasks.templates import placeholders


class Encoder(Protocol):
    """``scaling.data.tokenizer.Tokenizer``, or anything else with its ``encode``."""

    def encode(self, text: str) -> Sized: ...


@dataclasses.dataclass(frozen=True)
class Room:
    """The tokens that prompt and answer may have together.

    Attributes:
        encoder: of texts.
        tokens: how many there may be.
        frame: makes the prompt of a dialogue of what user and assistant say by turns; None = prompts are running text.
    """

    encoder: Encoder
    tokens: int
    frame: Callable[[Sequence[str]], Sized] | None = None

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encoder.encode(text))

    def answer(self, wanted: int) -> int:
        """The tokens that an answer may have where so many are wanted: no more than half of the room."""
        return min(wanted, self.tokens // 2)


@dataclasses.dataclass(frozen=True)
class Requests:
    task: Task
    shots: int  # demonstrations asked for
    seed: int
    items: tuple[Request, ...]
    notes: tuple[str, ...]  # sentences for the user

    def usable(self) -> tuple[Request, ...]:
        """The items that fit the context for which they were built.

        Raises:
            ValueError: there is none.
        """
        found = tuple(item for item in self.items if item.fits)
        if not found:
            raise ValueError(f"task {self.task.name}: none of {len(self.items):,} items fits the model's context")
        return found


def build_requests(
    task: Task,
    shots: int | str = 0,
    seed: int = 0,
    data: str | Path | None = None,
    room: Room | None = None,
    limit: int | None = None,
) -> Requests:
    """The requests of a task.

    Args:
        task: what to ask.
        shots: demonstrations in each context; "few" = the task's own K, GPT-3's where it has the task.
        seed: of the demonstrations, and of the choice of items where there is a ``limit``.
        data: directory of local files; generated tasks need none.
        room: demonstrations are left off until prompt and answer fit; None = all are kept, and no dialogue is made.
        limit: that many items, drawn at random; None = all.

    Raises:
        FileNotFoundError: the task's files are not there.
        ValueError: a malformed record, shots or limit that make no sense, an empty prompt, or a task that cannot be
            asked in a dialogue. Empty running text is skipped instead.
    """
    count = _shots(task, shots)
    if room is not None and room.frame is not None:
        check_dialogue(task)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    items = read_items(task, data, demonstrations=count > 0)
    builder = _Builder(task, items, count, seed, room)
    chosen = items.test
    if task.scoring.running_text:
        chosen = tuple(item for item in chosen if render_item(task, task.zero_shot, item).context)
        if not chosen:
            where = items.test[0].where
            raise ValueError(f"task {task.name}: all of its {len(items.test):,} texts are empty, from {where} on")
    skipped = len(items.test) - len(chosen)
    if limit is not None and limit < len(chosen):
        places = random.Random(f"{seed}/{task.name}").sample(range(len(chosen)), limit)
        chosen = tuple(chosen[place] for place in sorted(places))
    requests = tuple(builder.request(item) for item in chosen)
    notes = [*builder.notes(requests)]
    if skipped:
        notes.append(f"{task.name}: {skipped:,} of {len(items.test):,} texts are empty and are skipped")
    return Requests(task, count, seed, requests, tuple(notes))


def check_dialogue(task: Task) -> None:
    """Refuses a task whose text no user would say.

    Raises:
        ValueError: says which, and why.
    """
    if not task.scoring.in_dialogue:
        raise ValueError(
            f"task {task.name} measures how well running text goes on, which is no dialogue; evaluate it without --chat"
        )
    if not placeholders(task.chat.context):
        raise ValueError(f"task {task.name} asks nothing that a user could say; evaluate it without --chat")


def parse_shots(text: str) -> list[int | str]:
    """``0,1,few`` as numbers and "few".

    Raises:
        ValueError: something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or any(part != "few" and not part.isdecimal() for part in parts):
        raise ValueError(f"shots {text!r} must be numbers and 'few', with commas, such as 0,1,few")
    return [part if part == "few" else int(part) for part in parts]


def all_requests(
    tasks: Sequence[Task],
    shots: Sequence[int | str],
    seed: int,
    data: str | Path | None,
    room: Room,
    limit: int | None,
) -> Iterator[Requests]:
    """The requests of every task at every number of shots; once if "few" equals another number."""
    for task in tasks:
        for count in dict.fromkeys(_shots(task, wanted) for wanted in shots):
            yield build_requests(task, count, seed, data, room, limit)


def example_text(task: Task, item: Item) -> str:
    """An item and its right answer as running text, without description: what is searched for in training text."""
    rendered = render_item(task, task.prompt, item)
    return rendered.context + rendered.target


def _shots(task: Task, shots: int | str) -> int:
    if not task.scoring.demonstrated:
        return 0
    if shots == "few":
        return task.few_shot
    if not isinstance(shots, int) or shots < 0:
        raise ValueError(f"shots must be 0, 1, a larger number or 'few', got {shots!r}")
    return shots


def _ends(rendered: Rendered) -> list[str]:
    """The texts of an item with each of its options."""
    return [option.context + option.completion for option in rendered.options] or [rendered.context]


class _Builder:
    """Renders items and their demonstrations; each demonstration is rendered and measured once."""

    def __init__(self, task: Task, items: Items, shots: int, seed: int, room: Room | None):
        self.task, self.items, self.shots, self.seed, self.room = task, items, shots, seed, room
        self.dialogue = room is not None and room.frame is not None
        self.prompt: Prompt = task.chat if self.dialogue else task.prompt if shots else task.zero_shot
        # Whether the context tells items apart. If it does not, their answers must.
        self.asks = task.scoring.context_asks and bool(placeholders(self.prompt.context))
        self.rendered: dict[int, Rendered] = {}
        self.lengths: dict[int, int] = {}
        self.drawn: dict[str, int] = {}  # id of an item -> number of demonstrations that were found for it

    def request(self, item: Item) -> Request:
        task = self.task
        rendered = self._rendered(item)
        drawn = self._draw(item, rendered)
        self.drawn[item.id] = len(drawn)
        kept, fits = self._fit(rendered, drawn)
        before = self._before(drawn[:kept])
        if not rendered.context and (self.dialogue or not (before or rendered.options)):
            raise ValueError(f"{item.where}: the prompt is empty")
        context = before + rendered.context
        options = tuple(  # candidates with the same context share one string, since prompts can be long
            Option(context if o.context == rendered.context else before + o.context, o.completion)
            for o in rendered.options
        )
        return Request(
            id=item.id,
            task=task.name,
            context=context,
            options=options,
            gold=rendered.gold,
            target=rendered.target,
            references=rendered.references,
            shots=kept,
            demonstrations=tuple(self.items.demonstrations[place].id for place in drawn[:kept]),
            fits=fits,
            metadata={name: str(item.fields[name]) for name in task.metadata},
            where=item.where,
            turns=self._turns(rendered, drawn[:kept]) if self.dialogue else (),
            kept=rendered.kept,
        )

    def _rendered(self, item: Item) -> Rendered:
        """An item as texts.

        Raises:
            ValueError: as ``render_item``; or it is no dialogue that the template renders; names the record.
        """
        rendered = render_item(self.task, self.prompt, item)
        if self.dialogue:
            assert self.room is not None and self.room.frame is not None
            try:
                self.room.frame(self._divided(rendered.context))
            except ValueError as error:
                raise ValueError(f"{item.where}: {error}") from None
        return rendered

    def _draw(self, item: Item, rendered: Rendered) -> list[int]:
        """Places of demonstrations: each once, and none with the item's own question."""
        if not self.shots:
            return []
        pool = self.items.demonstrations
        own = self._question(rendered)
        rng = random.Random(f"{self.seed}/{self.task.name}/{item.id}")
        drawn: list[int] = []
        seen: set[int] = set()
        while len(drawn) < self.shots and len(seen) < len(pool):
            place = rng.randrange(len(pool))
            if place not in seen:
                seen.add(place)
                if self._question(self._demonstration(place)) != own:
                    drawn.append(place)
        return drawn

    def _question(self, rendered: Rendered) -> str:
        """What an item and its demonstrations may not share: the context, or the whole text if contexts are alike."""
        return rendered.context if self.asks and rendered.context else rendered.context + rendered.target

    def _demonstration(self, place: int) -> Rendered:
        if place not in self.rendered:
            found = self._rendered(self.items.demonstrations[place])
            self.rendered[place] = dataclasses.replace(found, options=(), references=())
        return self.rendered[place]

    def _text(self, place: int) -> str:
        rendered = self._demonstration(place)
        return rendered.context + rendered.target

    def _before(self, drawn: list[int]) -> str:
        """Description and demonstrations, each followed by the separator."""
        parts = [self.prompt.description] if self.prompt.description else []
        return "".join(part + self.prompt.separator for part in (*parts, *map(self._text, drawn)))

    def _turns(self, rendered: Rendered, drawn: list[int]) -> tuple[str, ...]:
        """What user and assistant say: a demonstration is a turn of each; the description stands before the first."""
        said: list[str] = []
        for found in map(self._demonstration, drawn):
            said += [*self._divided(found.context), found.target.strip()]
        first, *others = [*said, *self._divided(rendered.context)]
        start = self.prompt.description + self.prompt.separator if self.prompt.description else ""
        return start + first, *others

    def _divided(self, context: str) -> list[str]:
        """A context as what user, assistant, ..., and user say.

        Raises:
            ValueError: one of them says nothing, or the user is not the last.
        """
        if not self.prompt.turns:
            return [context]
        said = [text.strip() for text in re.split(self.prompt.turns, context)]
        if not all(said) or len(said) % 2 == 0:
            raise ValueError(
                f"the turns of {context[:60]!r} ... must be an odd number, from the user's to the user's, and not empty"
            )
        return said

    def _size(self, rendered: Rendered, drawn: list[int]) -> int:
        """Tokens of the prompt with these demonstrations, and of the longest option."""
        assert self.room is not None
        if self.room.frame is not None:
            options = [self.room.count(option.completion.lstrip(" ")) for option in rendered.options]
            return len(self.room.frame(self._turns(rendered, drawn))) + max(options, default=0)
        before = self._before(drawn)
        return max(self.room.count(before + end) for end in _ends(rendered))

    def _fit(self, rendered: Rendered, drawn: list[int]) -> tuple[int, bool]:
        """How many demonstrations fit, and whether the item fits without any."""
        if self.room is None or self.task.scoring.running_text:
            return len(drawn), True
        count, room = self.room.count, self.room.tokens - self.room.answer(self.task.scoring.new_tokens)

        def fits(kept: int) -> bool:
            return self._size(rendered, drawn[:kept]) <= room

        length = max(map(count, _ends(rendered))) + count(self._before([]))
        kept = 0
        for place in drawn:  # the sum over pieces is an estimate; the whole is measured below
            if place not in self.lengths:
                self.lengths[place] = count(self._text(place) + self.prompt.separator)
            length += self.lengths[place]
            if length > room:
                break
            kept += 1
        while kept and not fits(kept):
            kept -= 1
        return kept, kept > 0 or fits(0)

    def notes(self, requests: Sequence[Request]) -> Iterator[str]:
        """What the user should know about the requests that were built."""
        name, shots, count = self.task.name, self.shots, len(requests)
        if shots and self.items.from_test:
            yield f"{name}: demonstrations come from the test items, never the item itself; no training split"
        length = self.room.tokens if self.room else 0
        causes = {
            "all that there are": [r.shots for r in requests if r.shots == self.drawn[r.id] < shots],
            f"so that they fit {length:,} tokens": [r.shots for r in requests if r.shots < self.drawn[r.id]],
        }
        for why, fewer in causes.items():
            if not fewer:
                continue
            have = f"{min(fewer)} to {max(fewer)}" if len(set(fewer)) > 1 else f"{fewer[0]}"
            yield f"{name}: {len(fewer):,} of {count:,} items have {have} of {shots} demonstrations, {why}"
        wanted = self.task.scoring.new_tokens
        if self.room and self.room.answer(wanted) < wanted:
            yield f"{name}: answers have at most {self.room.answer(wanted):,} of {wanted:,} tokens, half of the context"
        if too_long := sum(not request.fits for request in requests):
            yield (
                f"{name}: {too_long:,} of {count:,} items are longer than {length:,} tokens "
                "even without demonstrations and are left out"
            )
