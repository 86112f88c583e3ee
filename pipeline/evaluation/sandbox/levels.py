"""How far a program is shut in, as levels with names, and what each leaves open."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pipeline.evaluation.sandbox import bubblewrap

LEVELS: dict[str, str] = {
    "full": (
        "user, PID, network, mount, IPC and UTS namespaces, a private file system, no capability, a system call filter "
        "and limits"
    ),
    "namespaces": (
        "as full, without the system call filter: a program reaches the whole of the kernel's interface, so one that "
        "knows a hole in the kernel can leave"
    ),
    "confined": (
        "Landlock, a system call filter and limits in place of namespaces: no network, no file but the interpreter's "
        "and a scratch directory's, no signal to others; but a program sees which files there are, and its files may "
        "fill the disk of the temporary directory"
    ),
    "filter": (
        "a system call filter and limits only: no network and no signal to others, but a program reads and writes "
        "whatever files your user may"
    ),
    "limits": "limits only: a program can do all that your user may, the network included",
}
"""Strongest first: name -> what it is, and what is lost by it."""


def ways(level: str) -> list[dict[str, Any]]:
    """What a launcher's job says of a level, an entry for each way to reach it. Raises ValueError if unknown."""
    if level not in LEVELS:
        raise ValueError(f"isolation={level!r} is not known; use one of {', '.join(LEVELS)}")
    walls = ["own"] + ["bubblewrap"] * bubblewrap.installed() if level in ("full", "namespaces") else ["none"]
    rest = {"filter": level in ("full", "confined", "filter"), "landlock": level == "confined"}
    return [{"walls": one, **rest} for one in walls]


def allowed(required: str) -> list[str]:
    """The levels that satisfy a requirement, strongest first. Raises ValueError for an unknown one."""
    ways(required)
    names = list(LEVELS)
    return names[: names.index(required) + 1]


def refusal(required: str, failures: dict[str, str], reached: str | None) -> str:
    """The text of a refusal: what failed, what to change, what a lower level would lose."""
    lines = [f"generated programs are run with isolation={required} or not at all, and this machine does not give it"]
    lines += [f"  {level}: {failure}" for level, failure in failures.items()]
    lines += [f"  remedy: {text}" for text in _remedies()]
    if reached is None:
        lines.append("  no lower level works either")
    else:
        lines.append(f"  or accept what works here with launch.isolation={reached}, which is {LEVELS[reached]}")
    return "\n".join(lines)


def _remedies() -> list[str]:
    if not sys.platform.startswith("linux"):
        return ["Linux is needed: namespaces and system call filters are its own; use a Linux machine or container"]
    found = []
    if _number("kernel/apparmor_restrict_unprivileged_userns") == 1:
        found.append("sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 (AppArmor forbids user namespaces)")
    if _number("kernel/unprivileged_userns_clone") == 0:
        found.append("sudo sysctl kernel.unprivileged_userns_clone=1 (user namespaces are switched off)")
    if _number("user/max_user_namespaces") == 0:
        found.append("sudo sysctl user.max_user_namespaces=15000 (no user namespace is allowed)")
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or os.environ.get("KUBERNETES_SERVICE_HOST"):
        found.append("start the container so that it may make namespaces: docker run --security-opt seccomp=unconfined")
    if os.geteuid() != 0 and not bubblewrap.installed():
        found.append("install bubblewrap (apt-get install bubblewrap), which many systems let make namespaces")
    return found


def _number(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None
