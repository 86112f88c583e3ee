"""The words of the command line before Hydra reads them: flags put first, and what it could not read explained.

Hydra's parser takes flags only before the first override, and its grammar gives characters such as = ( ) , a meaning of
their own inside a value. Neither is told to who types a path or appends `-m`.
"""

from __future__ import annotations

import difflib
import locale
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.engine.errors import ConfigError

FLAGS = {
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion",
    "-sc", "--info", "-i",
}  # fmt: skip
WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
}  # fmt: skip
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
SWEEPING = {"--multirun", "-m"}
TELLING = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc"}
"""Flags for which Hydra tells something and runs nothing."""
PROGRAM = "python -m pipeline"


def arrange(arguments: Sequence[str]) -> list[str]:
    """The same arguments in the order that Hydra's parser accepts: flags with their values, then overrides.

    Raises:
        ConfigError: an argument is not UTF-8, an unknown flag, or an override that cannot be read; what to type.
    """
    flags: list[str] = []
    overrides: list[str] = []
    left = list(arguments)
    while left:
        word = _utf8(left.pop(0))
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(_known(word))
        if (word in WITH_VALUE and left) or (word in ("--info", "-i") and left and left[0] in INFO):
            flags.append(_utf8(left.pop(0)))
    sweeps = bool(SWEEPING & set(flags))
    for override in overrides:
        check_override(override, sweeps)
    return [*flags, *overrides]


def check_override(text: str, sweeps: bool) -> None:
    """Refuse an override that Hydra cannot read, or reads as a sweep where none is asked for.

    Raises:
        ConfigError: with the words to type instead.
    """
    key, equal, value = text.partition("=")
    if not key.strip() or not (equal or key.startswith("~")):
        raise ConfigError(f"{text!r} is not a setting; write key=value, without spaces around the '='")
    if (key, value) != (key.strip(), value.strip()):
        own = quoted(key.strip(), value)
        kept = f", or, if they belong to the value, {shlex.quote(own)}" if own and key == key.strip() else ""
        plain = shlex.quote(f"{key.strip()}={value.strip()}")
        raise ConfigError(f"{text!r} has spaces around its '=' or at its end; write {plain}{kept}")
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(_unreadable(key, value, str(error))) from error
    if parsed.is_sweep_override() and not sweeps:
        raise ConfigError(_several(key, value, parsed))


def quoted(key: str, value: str) -> str | None:
    """The override by which Hydra takes `value` as text, letter for letter; None if its grammar has no way."""
    for mark in ('"', "'"):
        # A backslash within quotes is one, but for those before a quote: these are doubled, and the quote gets another.
        escaped = re.sub(r"(\\+)$", r"\1\1", re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", value))
        override = f"{key}={mark}{escaped}{mark}"
        try:
            if OverridesParser.create().parse_override(override).value() == value:
                return override
        except HydraException:
            continue
    return None


def written(key: str, value: str) -> str:
    """The override that gives a key this text, in quotes only where it needs them."""
    try:
        plain = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return quoted(key, value) or f"{key}={value}"
    is_text = not plain.is_sweep_override() and plain.value() == value
    return f"{key}={value}" if is_text else quoted(key, value) or f"{key}={value}"


def in_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale has another encoding: its files are UTF-8.

    Workers inherit the mode. Under `LANG=C` Python chooses it by itself.
    """
    if sys.getfilesystemencoding() == "utf-8" and locale.getencoding().lower().replace("-", "") == "utf8":
        return
    if os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_surroundings() -> None:
    """Refuse a current directory that is gone, or whose name no UTF-8 file can hold: results are named by it.

    Raises:
        ConfigError: what to do.
    """
    try:
        _utf8(str(Path.cwd()), "the current directory")
    except FileNotFoundError as error:
        raise ConfigError("the current directory was removed; change to one that exists") from error


def _utf8(word: str, what: str = "the argument") -> str:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} {os.fsencode(word)!r} is not valid UTF-8, so no result could name it; rename it, or give a "
            "symbolic link to it that has a UTF-8 name"
        ) from error
    return word


def _known(flag: str) -> str:
    name, equal, value = flag.partition("=")
    known = FLAGS | WITH_VALUE
    if name in known or (flag[:2] in known and not flag.startswith("--")):
        return flag
    key = name.lstrip("-").replace("-", "_")
    if equal:
        raise ConfigError(f"{flag} is not a flag; settings are given without dashes: {shlex.quote(f'{key}={value}')}")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    guess = f"did you mean {close[0]}?" if close else f"if it is a setting, write {key}=VALUE;"
    raise ConfigError(f"{flag} is not a flag; {guess} `{PROGRAM} --help` shows what there is")


def _unreadable(key: str, value: str, reason: str) -> str:
    found = quoted(key, value)
    if found is None:
        return f"{key}={value} cannot be read: {reason.splitlines()[0]}"
    return (
        f"the value of {key} holds characters that have a meaning of their own on the command line, or that are not "
        f"ASCII: {value!r}. Quote it twice, for the shell and inside:\n  {PROGRAM} {shlex.quote(found)}"
    )


def _several(key: str, value: str, parsed: Override) -> str:
    ways = [f"to run one after another: {PROGRAM} -m {shlex.quote(f'{key}={value}')}"]
    if "," in value and "(" not in value:
        ways.append(f"for a list: {shlex.quote(f'{key}=[{value}]')}")
    if found := quoted(key, value):
        ways.append(f"for one text: {shlex.quote(found)}")
    return f"{key}={value} gives several values:\n  " + "\n  ".join(ways)
