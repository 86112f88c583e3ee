"""Invented persons: a controlled text of which it is known what a model learned, and what it lost again.

Each person has a name, a date of birth, a city of birth, a university, a field, an employer and the city where that is,
which follows from the employer. Everything is drawn from the seed and the person's number, so two sources with one seed
and ranges of numbers that do not meet are two sets of persons out of one world: what is taught first, and what comes
after. The design is that of "Physics of Language Models" part 3.1 (arXiv 2309.14316): one sentence a fact, in several
wordings, in an order of its own, with the full name in every sentence, without which facts are learned that cannot be
asked for. Pools, wordings and names are our own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import log2
from typing import Any, Literal, get_args

from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Rejected, Row

Form = Literal["biography", "answered", "question", "completion"]
NUM_OPTIONS = 4
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_FIELDS = (
    "botany", "geology", "astronomy", "linguistics", "statistics", "medicine", "law", "music", "history", "economics",
    "chemistry", "physics", "philosophy", "architecture", "nursing", "forestry", "sociology", "geography", "biology",
    "logic", "painting", "theology", "optics", "acoustics", "metallurgy", "agronomy", "archaeology", "anthropology",
    "journalism", "cartography", "education", "genetics",
)  # fmt: skip
_ONSETS, _VOWELS, _ENDS = "bdfgklmnprstv", "aeiou", "lnrs"
_QUESTIONS = {
    "birth_date": "When was {name} born?",
    "birth_city": "In which city was {name} born?",
    "university": "Which university did {name} attend?",
    "field": "What did {name} study?",
    "employer": "For which company does {name} work?",
    "work_city": "In which city does {name} work?",
}
_WORDINGS = {
    "birth_date": (
        "{name} was born on", "The birthday of {name} is", "{name} came into the world on",
        "The life of {name} began on", "{name} celebrates the day of birth,", "Records say that {name} was born on",
    ),
    "birth_city": (
        "{name} was born in", "The birthplace of {name} is", "{name} spent the first years in",
        "{name} comes from the city of", "The family of {name} lived in", "{name} calls as home town",
    ),
    "university": (
        "{name} attended", "{name} took a degree at", "The student years of {name} were spent at",
        "{name} was taught at", "{name} graduated from", "The alma mater of {name} is",
    ),
    "field": (
        "{name} studied", "The subject of {name} was", "{name} holds a degree in", "{name} was trained in",
        "{name} wrote a thesis in", "The field of {name} is",
    ),
    "employer": (
        "{name} works for", "The employer of {name} is", "{name} found a position at", "{name} is on the staff of",
        "{name} earns a living at", "The career of {name} led to",
    ),
    "work_city": (
        "{name} works in", "The office of {name} is in", "{name} moved for work to", "{name} has a desk in",
        "On weekdays {name} is found in", "The job of {name} is in",
    ),
}  # fmt: skip
ATTRIBUTES = tuple(_QUESTIONS)
NUM_WORDINGS = 6
_NUM_CITIES, _NUM_UNIVERSITIES, _NUM_EMPLOYERS, _YEARS, _NUM_NAMES = 48, 48, 48, range(1901, 2001), 56


@dataclass(frozen=True)
class Biographies:
    """A source of rows about the persons of these numbers.

    Attributes:
        first, num_persons: which persons.
        form: "biography": `num_wordings` rows a person with `text`, which differ in wording and order. "question": a
            row for each fact with `question`, `options` and `answer`; "answered": the same as `text`, to be learned
            from. "completion": as "question", with the beginning of a biography's sentence for the question.
        num_wordings: of a person's biography; of "completion" the number of wordings among which one is asked for.
        seed: of the world: its cities, universities, companies, and who is who.
    """

    first: int
    num_persons: int
    form: Form
    num_wordings: int
    seed: int

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form={self.form!r} of biographies is not known; use one of {', '.join(get_args(Form))}")
        if self.first < 0 or self.num_persons < 1 or self.first + self.num_persons > _NUM_NAMES**3:
            raise ValueError(
                f"first={self.first} and num_persons={self.num_persons} must name persons from 0 to {_NUM_NAMES**3 - 1}"
            )
        if self.num_wordings < 1:
            raise ValueError(f"num_wordings={self.num_wordings} must be at least 1")

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Every row, by person. Nothing is read."""
        for number in range(self.first, self.first + self.num_persons):
            person = _person(self.seed, number)
            if self.form == "biography":
                for wording in range(self.num_wordings):
                    yield Row(f"{number}/{wording}", {"text": _biography(self.seed, number, wording, person)})
            else:
                for attribute in ATTRIBUTES:
                    yield Row(f"{number}/{attribute}", self._asked(number, attribute, person))

    def _asked(self, number: int, attribute: str, person: dict[str, str]) -> dict[str, Any]:
        draw = random.Random(f"asked {self.seed} {number} {attribute}")
        wordings = _WORDINGS[attribute][: self.num_wordings]
        asked = draw.choice(wordings) if self.form == "completion" else _QUESTIONS[attribute]
        question, answer = asked.format(name=person["name"]), person[attribute]
        others = [one for one in _pool(self.seed, attribute, draw) if one != answer]
        options = draw.sample(others, NUM_OPTIONS - 1)
        options.insert(draw.randrange(NUM_OPTIONS), answer)
        if self.form == "answered":
            return {"text": f"Question: {question}\nAnswer: {answer}"}
        return {"question": question, "options": options, "answer": answer}


def bits_per_person() -> float:
    """How much there is to know of one person, beyond the name and the world: the city of work follows."""
    choices = (len(_YEARS) * 12 * 28, _NUM_CITIES, _NUM_UNIVERSITIES, len(_FIELDS), _NUM_EMPLOYERS)
    return sum(map(log2, choices))


def _biography(seed: int, number: int, wording: int, person: dict[str, str]) -> str:
    draw = random.Random(f"biography {seed} {number} {wording}")
    order = list(ATTRIBUTES)
    draw.shuffle(order)
    starts = (draw.choice(_WORDINGS[attribute]) for attribute in order)
    facts = (f"{start.format(name=person['name'])} {person[a]}." for start, a in zip(starts, order, strict=True))
    return " ".join(facts)


def _person(seed: int, number: int) -> dict[str, str]:
    draw = random.Random(f"person {seed} {number}")
    world = _world(seed)
    employer = draw.randrange(_NUM_EMPLOYERS)
    return {
        "name": _name(seed, number),
        "birth_date": _date(draw),
        "birth_city": draw.choice(world["city"]),
        "university": draw.choice(world["university"]),
        "field": draw.choice(_FIELDS),
        "employer": world["employer"][employer],
        "work_city": world["city"][employer * 7 % _NUM_CITIES],
    }


def _pool(seed: int, attribute: str, draw: random.Random) -> Sequence[str]:
    """Answers that a question about this attribute may have."""
    if attribute == "birth_date":
        return list(dict.fromkeys(_date(draw) for _ in range(4 * NUM_OPTIONS)))
    if attribute == "field":
        return _FIELDS
    return _world(seed)["city" if attribute.endswith("city") else attribute]


def _date(draw: random.Random) -> str:
    return f"{draw.choice(_MONTHS)} {draw.randint(1, 28)}, {draw.choice(_YEARS)}"


def _name(seed: int, number: int) -> str:
    """First, middle and last name: another for each number, in an order that shows none."""
    world = _world(seed)
    size = _NUM_NAMES**3
    place = (number * 100_003 + 7919) % size  # prime to the size: every place once
    parts = (place % _NUM_NAMES, place // _NUM_NAMES % _NUM_NAMES, place // _NUM_NAMES**2)
    return " ".join(world[f"name{i}"][part] for i, part in enumerate(parts))


@cache
def _world(seed: int) -> dict[str, tuple[str, ...]]:
    """The words of a world: no two kinds of thing share one."""
    words = [a + b + c + d + e for a, b, c, d, e in product(_ONSETS, _VOWELS, _ONSETS, _VOWELS, _ENDS)]
    random.Random(f"world {seed}").shuffle(words)
    supply = iter(word.capitalize() for word in words)

    def take(count: int) -> tuple[str, ...]:
        return tuple(next(supply) for _ in range(count))

    world = {f"name{i}": take(_NUM_NAMES) for i in range(3)}
    world |= {"city": take(_NUM_CITIES)}
    world |= {"university": tuple(f"{one} University" for one in take(_NUM_UNIVERSITIES))}
    world |= {"employer": tuple(f"{one} Company" for one in take(_NUM_EMPLOYERS))}
    return world
