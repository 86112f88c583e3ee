from __future__ import annotations

import ast
import zipfile

import pytest

from pipeline.data.chat.conversations import Chat
from pipeline.data.chat.docstrings import DocstringPairs, conversation, describe_function, documented_functions
from pipeline.data.sources.documents import PackageFiles
from pipeline.data.sources.rows import Rejected

MODULE = '''
import functools


def add(a: int, b: int = 1) -> int:
    """Add two numbers with :func:`operator.add` in ``O(1)``.

    Parameters
    ----------
    a : int
    """
    # keep this comment
    total = a + b

    return total


class Box:
    @functools.lru_cache
    @registered("box")
    def area(
        self,
        scale=2,
    ):
        """Return the area of the box,
        scaled.

        >>> Box().area()
        """
        return self.width * self.height * scale


def one_line(x): "On the line of the header."; return x


def stub():
    """Only an interface, nothing here."""
    raise NotImplementedError


@deprecated("later")
def old(x):
    """Old and not to be learned from."""
    return x


def _hidden(x):
    """Private to its module."""
    return x


def bare(x):
    return x
'''


@pytest.fixture(scope="module")
def functions():
    return {name.split(":")[1]: function for name, function in documented_functions(MODULE)}


def test_code_comes_without_and_with_its_docstring(functions):
    add = functions["add"]
    assert add.target == "a Python function `add(a: int, b: int=1) -> int`"
    assert add.description == "Add two numbers with `operator.add` in `O(1)`."
    assert add.code == (
        "def add(a: int, b: int = 1) -> int:\n    # keep this comment\n    total = a + b\n\n    return total"
    )
    assert ast.get_docstring(ast.parse(add.documented).body[0]) == add.description
    assert "registered" not in functions["Box.area"].code


def test_methods_name_their_class_and_keep_only_known_decorators(functions):
    area = functions["Box.area"]
    assert area.target == "the method `area(self, scale=2)` of a Python class `Box`"
    assert area.description == "Return the area of the box,\nscaled."
    assert area.code.startswith("@functools.lru_cache\ndef area(\n    self,\n    scale=2,\n):\n    return self.width")
    documented = ast.parse(area.documented).body[0]
    assert ast.get_docstring(documented) == area.description
    without = ast.parse(area.code).body[0]
    assert ast.dump(without.body[0]) == ast.dump(documented.body[1])


def test_what_teaches_nothing_is_named(functions):
    assert {name: found for name, found in functions.items() if isinstance(found, str)} == {
        "one_line": "docstring on a line with code",
        "stub": "no body",
        "old": "deprecated or an interface",
        "_hidden": "private or a test",
    }
    assert "bare" not in functions


@pytest.mark.parametrize(
    ("docstring", "description"),
    [
        ("Sum up.\n\nArgs:\n    x: a number", "Sum up."),
        ("Sum up.\n\n:param x: a number", "Sum up."),
        ("Sum up.\n\nThe formula is\n\n.. math:: x", "Sum up."),
        ("Sum up.\n\nFor example:\n\n>>> 1", "Sum up."),
        ("Given numbers,\n\n.. math:: x", ""),
        ("Sum up\n\n>>> 1", "Sum up"),
        ("Sum up.\n\n**Examples**\n\nSome.", "Sum up."),
        ("Sum up.\n\nMore prose\nover two lines.", "Sum up.\n\nMore prose\nover two lines."),
    ],
)
def test_descriptions_end_before_sections_and_half_sentences(docstring, description):
    assert describe_function(docstring) == description


def test_conversations_are_of_three_kinds_and_reproducible(functions):
    kinds = set()
    for number in range(40):
        name = f"f{number}"
        source = MODULE.replace("add(", f"{name}(")
        function = next(found for key, found in documented_functions(source) if key.endswith(name))
        messages = conversation(function)
        assert messages == conversation(function)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        explains = messages[1]["content"] == function.description
        kinds.add("explain" if explains else f"write {len(messages)}")
        code = messages[0 if explains else 1]["content"]
        assert f"```python\n{function.code}\n```" in code
        assert explains or function.description in messages[0]["content"]
    assert kinds == {"explain", "write 2", "write 4"}


def test_a_package_gives_every_usable_function_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as handle:
        handle.writestr("p/a.py", MODULE)
        handle.writestr("p/copy.py", MODULE)
        handle.writestr("p/broken.py", "def f(:")
    origin = PackageFiles({"name": "p"}, ["p/*.py"], [])
    found = list(DocstringPairs(origin, 1.0, 10, 200, 20, 150).read(lambda s: tmp_path / "p.whl", lambda s: []))
    assert [chat.id for chat in found if isinstance(chat, Chat)] == ["p/a.py:5:add", "p/a.py:21:Box.area"]
    reasons = [item.reason for item in found if isinstance(item, Rejected)]
    assert reasons.count("repeated") == 2
    assert reasons.count("not valid Python") == 1
    short = list(DocstringPairs(origin, 1.0, 10, 45, 20, 60).read(lambda s: tmp_path / "p.whl", lambda s: []))
    assert not [chat for chat in short if isinstance(chat, Chat)]
    with pytest.raises(ValueError, match="weight"):
        DocstringPairs(origin, 0.0, 10, 200, 20, 150)
