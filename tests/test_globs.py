"""One meaning of globs, wherever names come from."""

import pytest

from pipeline.globs import matches


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a.py", "*.py", True),
        ("p/a.py", "*.py", False),
        ("p/a.py", "**/*.py", True),
        ("a.py", "**/*.py", True),
        ("p/q/a.py", "p/**", True),
        ("pq/a.py", "p/**", False),
        ("p/tests/a.py", "**/tests/**", True),
        ("p/mytests/a.py", "**/tests/**", False),
        ("a+b.py", "a+b.py", True),
        ("d7.txt", "d[0-9].txt", True),
        ("dx.txt", "d[!0-9].txt", True),
        ("b.txt", "[^a].txt", True),
        ("a.txt", "[^a].txt", False),
        ("a]", r"a[\]b]", True),
        ("a[", "a[", True),
        ("{a,b}.txt", "{a,b}.txt", True),
        ("A.txt", "a.txt", False),
        ("p/.hidden/a.py", "**/*.py", True),
    ],
)
def test_globs(name, pattern, expected):
    assert matches(name, [pattern]) is expected
    assert matches(name, ["**"], [pattern]) is not expected
