"""Instruction pairs from documented Python functions: the source is parsed, never imported."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.data.chat.conversations import Chat, Message, checked, dialogue
from pipeline.data.sources.documents import WeightedRows
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Rejected, Unused, unused
from pipeline.ranges import NOT_NEGATIVE, Range, check_ranges

_WRITE = (
    "Write {target}.\n\n{description}",
    "Implement {target}. It should do the following:\n\n{description}",
    "I need {target}.\n\n{description}",
    "Please complete this Python code.\n\n```python\n{header}\n```\n\nWhat it does: {description}",
)
_EXPLAIN = (
    "What does this Python function do?\n\n```python\n{code}\n```",
    "Explain the following Python code.\n\n```python\n{code}\n```",
    "Describe what `{name}` does.\n\n```python\n{code}\n```",
)
_DOCUMENT = (
    "Now add a docstring to it.",
    "Thanks. Please document the function with a docstring.",
    "Can you give it a docstring?",
)
_SECTION = re.compile(
    r"^\s*(?:>>>|\.\. |:\w|@\w|[A-Z][\w ]*:?\n\s*[-=~]{3,}"
    r"|\W*(?:examples?|references?|notes?|see also|usage|arg\w*|param\w*|returns?|yields?|raises|e\.g\.)\**:?\**\s*$)",
    re.M | re.I,
)
_ROLE = re.compile(r":\w+(?::\w+)*:`~?([^`]*)`")
_REJECTED_DECORATORS = ("deprecat", "overload", "abstractmethod", "setter", "deleter")
_KNOWN_DECORATORS = ("property", "staticmethod", "classmethod", "contextmanager", "functools.", "cache", "lru_cache")
_STUB = re.compile(r"\bdeprecated\b|\bobsolete\b|not implemented", re.I)


@dataclass(frozen=True)
class DocumentedFunction:
    """A function or method as source: `code` without its docstring, `documented` with the short one, both dedented.

    target: what is asked for, such as "a Python function `f(x)`". Decorators only its own package knows are left out.
    """

    name: str
    target: str
    header: str
    description: str
    code: str
    documented: str


@dataclass(frozen=True)
class DocstringPairs(WeightedRows):
    """Conversations about real functions: write one from its description, explain one, or write and then document one.

    Which of the three, and the wording, is chosen by a hash of the code. A function is used if its description (the
    prose of its docstring before sections and examples) has `min_description_chars` to `max_description_chars` and its
    code `min_code_chars` to `max_code_chars` characters; stubs, tests, overloads, deprecated and repeated ones are left
    out and counted.
    """

    min_description_chars: int
    max_description_chars: int
    min_code_chars: int
    max_code_chars: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("description", "code"):
            least, most = getattr(self, f"min_{what}_chars"), getattr(self, f"max_{what}_chars")
            check_ranges({f"min_{what}_chars": least, f"max_{what}_chars": most}, {
                f"min_{what}_chars": NOT_NEGATIVE, f"max_{what}_chars": Range(least, hint=f"min_{what}_chars"),
            })  # fmt: skip

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected | Unused]:
        """One conversation for every usable function, in the order of files and lines; see `Chats.read`."""
        seen: set[str] = set()
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                found = list(documented_functions(str(row.fields["text"])))
            except (SyntaxError, ValueError, RecursionError):
                yield Rejected(row.id, "not valid Python")
                continue
            for qualified, function in found:
                yield self._chat(f"{row.id}:{qualified}", function, seen)
            yield from unused(row, ("text",))

    def _chat(self, identity: str, function: DocumentedFunction | str, seen: set[str]) -> Chat | Rejected:
        if isinstance(function, str):
            return Rejected(identity, function, by_rule=True)
        if not self.min_description_chars <= len(function.description) <= self.max_description_chars:
            return Rejected(identity, "description too short or too long", by_rule=True)
        if not self.min_code_chars <= len(function.code) <= self.max_code_chars:
            return Rejected(identity, "code too short or too long", by_rule=True)
        key = "".join(function.code.split())
        if key in seen:
            return Rejected(identity, "repeated", by_rule=True)
        seen.add(key)
        return checked(identity, conversation(function))


def conversation(function: DocumentedFunction) -> list[Message]:
    """The messages about a function; kind and wording follow a hash of its code."""
    draw = int.from_bytes(hashlib.blake2b(function.code.encode(), digest_size=8).digest(), "little")
    kind, draw = draw % 4, draw // 4
    values = vars(function)
    if kind == 0:
        return dialogue(_EXPLAIN[draw % len(_EXPLAIN)].format(**values), function.description)
    turns = [_WRITE[draw % len(_WRITE)].format(**values), _fence(function.code)]
    if kind == 1:
        turns += [_DOCUMENT[draw % len(_DOCUMENT)], _fence(function.documented)]
    return dialogue(*turns)


def _fence(code: str) -> str:
    return f"```python\n{code}\n```"


def documented_functions(source: str) -> Iterator[tuple[str, DocumentedFunction | str]]:
    """("line:qualified name", function or the reason it is unfit) of every documented function and method of a module.

    Functions inside functions are left to their owners. Raises SyntaxError if the module does not parse.
    """
    lines = source.splitlines()
    for qualified, node in _functions(ast.parse(source), ""):
        if (docstring := ast.get_docstring(node, clean=True)) is not None:
            yield f"{node.lineno}:{qualified}", _unfit(node, docstring) or _function(node, qualified, docstring, lines)


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try):
            name = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            yield from _functions(node, prefix + name)


def _unfit(node: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str) -> str | None:
    decorators = [ast.unparse(decorator).lower() for decorator in node.decorator_list]
    if node.name.startswith(("test", "_")):
        return "private or a test"
    if '"""' in docstring:
        return "docstring with quotes"
    if _STUB.search(docstring[:400]) or any(word in name for name in decorators for word in _REJECTED_DECORATORS):
        return "deprecated or an interface"
    body = node.body[1:]
    if not body or all(isinstance(part, ast.Pass | ast.Raise) or _is_constant(part) for part in body):
        return "no body"
    if node.body[0].lineno <= _header_end(node) or body[0].lineno <= (node.body[0].end_lineno or 0):
        return "docstring on a line with code"
    return None


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _header_end(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The last line known to belong to the header: of the arguments or the returned type."""
    parts = [*ast.walk(node.args), *([node.returns] if node.returns else [])]
    return max(node.lineno, *(getattr(part, "end_lineno", 0) for part in parts))


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, qualified: str, docstring: str, lines: list[str]
) -> DocumentedFunction:
    doc_first, doc_last = node.body[0].lineno - 1, node.body[0].end_lineno or 0
    description = describe_function(docstring)
    margin = " " * node.body[0].col_offset
    short = textwrap.indent(_quoted(description), margin).replace("\\", "\\\\").splitlines()
    header, body = lines[node.lineno - 1 : doc_first], lines[doc_last : node.end_lineno]
    head = _known_decorators(node, lines) + header
    while body and not body[0].strip():
        body = body[1:]
    return DocumentedFunction(
        node.name,
        _target(node, qualified),
        _dedent(header),
        description,
        _dedent(head + body),
        _dedent([*head, *short, *body]),
    )


def _quoted(description: str) -> str:
    end = "\n" if "\n" in description else ""
    return f'"""{description}{end}"""'


def _known_decorators(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> list[str]:
    kept = [part for part in node.decorator_list if ast.unparse(part).startswith(_KNOWN_DECORATORS)]
    return [line for part in kept for line in lines[part.lineno - 1 : part.end_lineno]]


def _target(node: ast.FunctionDef | ast.AsyncFunctionDef, qualified: str) -> str:
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"`{node.name}({ast.unparse(node.args)}){returned}`"
    owner = qualified.rpartition(".")[0]
    return f"the method {signature} of a Python class `{owner}`" if owner else f"a Python function {signature}"


def _dedent(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip("\n")


def describe_function(docstring: str) -> str:
    """The prose of a docstring: the paragraphs before the first section, field list or example, without markup roles.

    A last paragraph that leads over to what was cut off is left out too; so the result may be empty.
    """
    text = inspect.cleandoc(docstring)
    section = _SECTION.search(text)
    prose = _ROLE.sub(r"`\1`", text[: section.start()] if section else text).replace("``", "`")
    paragraphs = [part.rstrip() for part in re.split(r"\n\s*\n", prose) if part.strip()]
    while section and paragraphs and _leads_on(paragraphs[-1], alone=len(paragraphs) == 1):
        paragraphs.pop()
    return "\n\n".join(paragraphs).strip()


def _leads_on(paragraph: str, alone: bool) -> bool:
    """Whether a paragraph announces what follows it. A first line often has no full stop; a later one without does."""
    return paragraph.endswith((",", ":", ";", "=")) or not (alone or paragraph.endswith((".", "!", "?", ")")))
