"""The processes of one run, each of which knows only what it needs.

launcher (outside, supervises) -> init (process 1 of the namespaces; builds the room, waits, and takes everything with
it when it ends) -> the program (no capability, limits, system call filter; replaces itself with a bare interpreter).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pipeline.evaluation.sandbox import bubblewrap, kernel, landlock, room, seccomp, usage

NOBODY = 65534
"""Who a program is outside, if the launcher is root; otherwise it is the launcher's own user."""
_SPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)  # fmt: skip
_OPEN_FILES = 128
_INHERITED = ("stdin", "stdout", "stderr", "channel", "job")  # as descriptors 0 to 4; all others close themselves
_ENVIRONMENT = {
    "LANG": "C.UTF-8", "TZ": "UTC", "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",  # a program's verdict must not change from run to run
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def enter_namespaces() -> None:
    """Leave for new namespaces. The PID namespace holds for children. Raises OSError where the system forbids it.

    As root, the program's user maps to `nobody` and init's to root, which must reach an interpreter in root's home.
    """
    outside, user, group = os.getpid(), os.geteuid(), os.getegid()
    heard, said = os.pipe()
    helper = os.fork()  # a process of several users can be mapped only from outside
    if helper == 0:
        _map_users(outside, user, group, heard, said)
    os.close(heard)
    try:
        kernel.unshare(_SPACES)
        os.write(said, b"1")
    finally:
        os.close(said)
        _, status = os.waitpid(helper, 0)
    if status:
        raise PermissionError("writing the user map of a new user namespace was refused")


def _map_users(process: int, user: int, group: int, heard: int, said: int) -> NoReturn:
    os.close(said)
    try:
        if os.read(heard, 1) == b"1":
            for name, own in (("uid_map", user), ("gid_map", group)):
                if name == "gid_map" and user != 0:
                    _write(f"/proc/{process}/setgroups", "deny")
                inside = f"0 0 1\n{room.USER} {NOBODY} 1\n" if user == 0 else f"{room.USER} {own} 1\n"
                _write(f"/proc/{process}/{name}", inside)
    except OSError:
        os._exit(1)
    os._exit(0)


def _write(path: str, text: str) -> None:
    with open(path, "w") as stream:
        stream.write(text)


def start_init(job: Mapping[str, Any], files: Mapping[str, int]) -> int:
    """Fork process 1, or what stands for it where we made no namespaces, and return its pid.

    It reports on files["status"], a line each: "ready" once the program is on its way, "error: ..." if it or the room
    could not be set up, and at the end "ended <wait status> <CPU seconds>" of the program.
    """
    body = _be_init if job["walls"] == "own" else _tend
    init = os.fork()
    if not init:
        _last_words(files["status"], lambda: body(job, files))
    return init


def end_all() -> None:
    """Kill all descendants of this process, which must be their subreaper, and return when none is left.

    None escapes: a process that was forked while the others died is found in the next round.
    """
    while True:
        for process in usage.family(os.getpid()):
            if process != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _last_words(status: int, body: Callable[[], None]) -> NoReturn:
    """The rest of a forked process: it never returns into its parent's code, and says what went wrong."""
    try:
        body()
    except BaseException as error:
        os.write(status, f"error: {type(error).__name__}: {error}\n".encode()[:2000])
        os._exit(1)
    os._exit(0)


def _be_init(job: Mapping[str, Any], files: Mapping[str, int]) -> None:
    kernel.die_with_parent()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    socket.sethostname(room.HOST)
    room.build(job["interpreter"], job["limits"]["scratch_mb"] << 20)
    _tend(job, files)


def _tend(job: Mapping[str, Any], files: Mapping[str, int]) -> None:
    """Start the program, bury whatever ends, and report the program's end."""
    status = files["status"]
    program = os.fork()
    if not program:
        _last_words(status, lambda: _be_program(job, files))
    for name in _INHERITED:
        os.close(files[name])
    os.write(status, b"ready\n")
    ended = -1
    while ended != program:
        ended, wait_status, used = os.wait4(-1, 0)
    os.write(status, f"ended {wait_status} {used.ru_utime + used.ru_stime:.3f}\n".encode())


def _be_program(job: Mapping[str, Any], files: Mapping[str, int]) -> None:
    os.setsid()
    os.chdir("/" if job["walls"] == "bubblewrap" else job["home"])
    for number, name in enumerate(_INHERITED):
        os.dup2(files[name], number)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _limit(job["limits"])
    executable = job["interpreter"]["executable"]
    command = [executable, "-s", "-S", "-P", "-B", "-c", job["runner"]]
    if job["walls"] == "bubblewrap":  # which does the rest
        command = [*bubblewrap.command(job, _filter_for_bubblewrap() if job["filter"] else None), *command]
    else:
        _give_up_rights(job)
    os.execve(command[0], command, {**_ENVIRONMENT, "HOME": job["home"], "TMPDIR": job["home"]})


def _give_up_rights(job: Mapping[str, Any]) -> None:
    kernel.drop_bounding_set()
    if os.geteuid() == 0:
        _become(room.USER if job["walls"] == "own" else NOBODY)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if job["landlock"]:
        interpreter = job["interpreter"]
        devices = [f"/dev/{name}" for name in room.DEVICES]
        landlock.confine([*interpreter["shown"], *interpreter["packages"]], devices, job["home"])
    if job["filter"]:
        seccomp.install(None if job["walls"] == "own" else os.getpid())


def _filter_for_bubblewrap() -> int:
    descriptor = os.memfd_create("filter", 0)  # inherited: bubblewrap reads and closes it
    os.write(descriptor, seccomp.program(os.uname().machine))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _limit(limits: Mapping[str, Any]) -> None:
    # SIGXCPU says what it was; a program that catches it is killed a second later
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))
    for kind, value in {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: limits["scratch_mb"] << 20,
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }.items():
        resource.setrlimit(kind, (value, value))
