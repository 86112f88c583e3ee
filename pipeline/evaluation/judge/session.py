"""A Python session whose every program runs alone: what was run before is replayed without its output.

A sandbox runs one program and keeps nothing. To the model it is a session all the same: names stay defined, and the
value of a last expression is shown. What a program did at random or read from a clock may differ in the replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.evaluation.sandbox import RunProgram

MAX_OUTPUT = 2000
"""Characters of a program's output that the model sees."""

_RUNTIME = """
import ast, contextlib, io, sys, traceback

def _run(source, names):
    tree = ast.parse(source, "<program>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)
        if value is not None:
            print(repr(value))

def _session(earlier, source):
    names = {"__name__": "__main__"}
    for one in earlier:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                _run(one, names)
            except BaseException:
                pass
    try:
        _run(source, names)
    except BaseException:
        kind, error, trace = sys.exc_info()
        while trace is not None and trace.tb_frame.f_code.co_filename != "<program>":
            trace = trace.tb_next
        print("".join(traceback.format_exception(kind, error, trace)), end="")
"""


@dataclass
class Session:
    """One model's session.

    Attributes:
        run: runs a program.
        prelude: defines the tools that the model may call.
        earlier: the programs that were run, in order.
    """

    run: RunProgram
    prelude: str = ""
    earlier: list[str] = field(default_factory=list)

    def execute(self, code: str) -> str:
        """Run a program after the earlier ones; returns what it printed, cut to `MAX_OUTPUT` characters."""
        ran = self.run(program([self.prelude, *self.earlier] if self.prelude else self.earlier, code))
        stopped = "" if ran.ok else f"\n{ran.stderr.strip() or 'The program was stopped.'}"  # its own errors it prints
        output = f"{ran.stdout}{stopped}".strip()
        self.earlier.append(code)
        return output if len(output) <= MAX_OUTPUT else f"{output[:MAX_OUTPUT]}\n[cut: {len(output):,} characters]"


def program(earlier: Sequence[str], code: str) -> str:
    """One program that replays `earlier` in silence and then runs `code` as a session would."""
    return f"{_RUNTIME}\n_session({list(earlier)!r}, {code!r})\n"
