"""What of this machine's disk a Python program needs to see: the interpreter, its library, the system's libraries."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_SYSTEM = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_LOADER_CACHE = "/etc/ld.so.cache"


@dataclass(frozen=True)
class Interpreter:
    """An interpreter and its surroundings, as paths on this machine.

    Attributes:
        executable: the base interpreter, no virtual environment's.
        shown: files and directories to be shown at their own places.
        hidden: directories among them that are shown empty: what users installed is none of the program's business.
        packages: files and directories of the packages that the program may import, shown in /packages.
    """

    executable: str
    shown: tuple[str, ...]
    hidden: tuple[str, ...]
    packages: tuple[str, ...]


@lru_cache(maxsize=8)
def this_interpreter(packages: Sequence[str] = ()) -> Interpreter:
    """The interpreter that runs this process, with the named packages. Raises ValueError if one is not installed."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix, "installed_base": sys.base_prefix}
    base["installed_platbase"] = sys.base_exec_prefix
    libraries = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    own = [str(Path(sys.base_prefix, name)) for name in ("lib", "lib64")]  # conda and pyenv keep shared libraries there
    places = dict.fromkeys([executable, *libraries, *own, *_SYSTEM, _LOADER_CACHE])
    shown = _outermost([place for place in places if place and os.path.exists(place)])
    installed = {str(Path(library, "site-packages")) for library in libraries if library}
    hidden = sorted(place for place in installed if os.path.isdir(place))
    return Interpreter(executable, tuple(shown), tuple(hidden), tuple(_found(packages)))


def _outermost(places: Sequence[str]) -> list[str]:
    """The places without those that lie inside another; links stay, for they are shown as links."""
    chosen: list[str] = []
    for place in sorted(places):
        if not any(place.startswith(f"{other}/") and not os.path.islink(other) for other in chosen):
            chosen.append(place)
    return chosen


def _found(packages: Sequence[str]) -> list[str]:
    places = []
    for name in packages:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.origin:
            raise ValueError(f"sandbox package {name!r} is not installed; run `pip install {name}` or leave it out")
        own = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        beside = own.parent / f"{name}.libs"  # where wheels put the shared libraries that they bring along
        places += [str(place) for place in (own, beside) if place.exists()]
    return places
