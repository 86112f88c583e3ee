"""Programs that mean harm, one test each: they fail, the machine is as before, and the next program runs."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.evaluation.sandbox import Limits, Sandbox, SandboxError, levels, pool, seccomp
from pipeline.evaluation.sandbox.interpreter import this_interpreter
from tests.children import PATIENCE_S, wait_for

LIMITS = Limits(cpu_s=20, wall_s=PATIENCE_S, memory_mb=256, processes=12, scratch_mb=4, output_kb=64, packages=())
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's own")


def at(level, **changes):
    """A sandbox at exactly this level; skips the test where the machine does not give it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "allowed", lambda required: [required])
        try:
            return Sandbox(Limits(**{**asdict(LIMITS), **changes}), level, 2)
        except SandboxError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def full():
    return at("full")


@pytest.fixture(autouse=True)
def machine():
    """After each test: no process is left, the interpreter's files are there, and a program still runs."""
    library = sorted(path.name for path in Path(os.__file__).parent.iterdir())
    yield
    assert not [child for child in psutil.Process().children(recursive=True) if "open(JOB" in line_of(child)]
    assert sorted(path.name for path in Path(os.__file__).parent.iterdir()) == library
    assert Path(sys.executable).exists() and Path("/etc/passwd").exists()


def line_of(process):
    """A process's command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def commands():
    """The command lines of all processes of this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def still_works(sandbox):
    again = list(sandbox.run_all(["print(6 * 7)", "1 / 0", "print('more')"]))
    assert [ran.ok for ran in again] == [True, False, True] and again[0].stdout == "42\n"


def test_a_plain_program_is_run_and_the_level_is_named(full):
    assert full.level == "full"
    ran = full.run("import sys\nprint(sum(range(10)))\nprint('x', file=sys.stderr)")
    assert (ran.outcome, ran.error, ran.stdout, ran.stderr) == ("finished", "", "45\n", "x\n")
    assert full.run("print(input())", stdin="given").stdout == "given\n"


@pytest.mark.parametrize(
    ("program", "outcome", "error"),
    [
        ("assert 1 == 2, 'wrong'", "raised", "AssertionError: wrong"),
        ("def f(:", "raised", "SyntaxError"),
        ("f()", "raised", "NameError"),
        ("raise SystemExit(0)", "raised", "SystemExit: 0"),
        ("def f(): return f()\nf()", "raised", "RecursionError"),
        ("import os; os._exit(0)", "exited", "left with status 0 before its end"),
        ("import os; os.abort()", "killed", "signal 6"),
        ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
        ("import os; os.execv('/bin/sh', ['sh'])", "raised", "FileNotFoundError"),
        ("x = '\\0'\n\0", "raised", ""),
        ("'\udc80'", "raised", "SyntaxError"),
        ("input()", "raised", "EOFError"),
        ("class E(BaseException):\n def __str__(self): raise self\nraise E()", "raised", "an exception that cannot"),
    ],
    ids=["assert", "syntax", "name", "exit", "recursion", "_exit", "abort", "segfault", "exec", "nul", "surrogate",
         "input", "hostile exception"],
)  # fmt: skip
def test_a_crash_is_a_wrong_answer(full, program, outcome, error):
    ran = full.run(program)
    assert ran.outcome == outcome and ran.error.startswith(error) and not ran.ok


def test_fork_bomb(full):
    program = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    ran = at("full", wall_s=1.5).run(program)
    assert ran.outcome == "timeout"
    still_works(full)


def test_number_of_processes_and_threads(full):
    program = """
import os, threading
children = 0
try:
    while True:
        if os.fork() == 0:
            threading.Event().wait()
            os._exit(0)
        children += 1
except OSError as error:
    print(children, error.errno)
"""
    count, error = full.run(program).stdout.split()
    assert 8 <= int(count) <= LIMITS.processes and int(error) == 11
    ran = full.run("import threading\nfor _ in range(99): threading.Thread(target=threading.Event().wait).start()")
    assert ran.error.startswith("RuntimeError: can't start new thread")


def test_100_gigabytes(full):
    assert full.run("bytearray(100 << 30)").outcome == "memory"
    assert full.run("import mmap\nmmap.mmap(-1, 100 << 30)").outcome in ("raised", "memory")
    assert full.run("x = []\nwhile True: x.append(bytes(1 << 20))").outcome == "memory"
    still_works(full)


def test_memory_of_many_processes(full):
    program = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = b"x" * (150 << 20)
        time.sleep(3600)
        os._exit(0)
time.sleep(3600)
"""
    ran = full.run(program)
    assert ran.outcome == "memory" and ran.error.endswith("256 MiB are allowed")


def test_infinite_loops(full):
    assert at("full", cpu_s=1).run("while True: pass").error == "1 s of CPU time are over"
    ran = at("full", wall_s=0.5).run("import time; time.sleep(3600)")
    assert (ran.outcome, ran.error) == ("timeout", "0.5 s of wall time are over")
    still_works(full)


def test_endless_output(full):
    for stream in ("stdout", "stderr"):
        ran = full.run(f"import sys\nwhile True: sys.{stream}.write('x' * 999)")
        assert ran.outcome == "output" and len(getattr(ran, stream)) == LIMITS.output_kb << 10
    still_works(full)


def test_passwords_home_and_environment(full, monkeypatch):
    monkeypatch.setenv("A_KEY", "very-secret")
    home, root = str(Path.home()), str(Path(__file__).parents[2])
    ran = full.run(f"""
import os
for place in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/proc/1/environ", "/proc/self/environ", "/sys/kernel",
              "/var", "/home", "/run", "/boot", {root!r}, {__file__!r}, {home!r} + "/.ssh"):
    print(place, os.path.exists(place))
print(sorted(os.environ))
print(os.path.expanduser("~"), os.getcwd(), os.getuid(), os.getppid(), os.uname().nodename)
""")
    assert "True" not in ran.stdout and "very-secret" not in ran.stdout
    *_, environment, where = ran.stdout.splitlines()
    allowed = {"HOME", "TMPDIR", "LANG", "LC_CTYPE", "TZ", "PATH", "PYTHONHASHSEED"}
    assert {name.strip("'") for name in environment.strip("[]").split(", ")} - allowed <= {
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    }  # fmt: skip
    assert where == "/scratch /scratch 1000 1 sandbox"


def test_site_packages_are_not_shown_unless_named(full):
    assert full.run("import pytest").error.startswith("ModuleNotFoundError")
    hidden = this_interpreter().hidden
    shown = full.run(f"import os\nprint([os.listdir(place) for place in {hidden!r}])").stdout
    assert shown == f"{[[]] * len(hidden)}\n"
    ran = at("full", packages=("iniconfig",)).run("import iniconfig, os; print(os.listdir('/packages'))")
    assert ran.stdout == "['iniconfig']\n"


def test_writing_outside_the_scratch(full):
    mark = f"mark-{secrets.token_hex(8)}"
    ran = full.run(f"""
import os, tempfile
for folder in ("/", "/usr", "/usr/lib", "/etc", "/dev", "/packages", os.path.dirname(os.__file__), "/tmp", "."):
    try:
        open(folder + "/{mark}", "w").close()
        print("wrote", folder)
    except OSError:
        pass
print(os.path.exists("/scratch/{mark}"), os.path.dirname(tempfile.mkstemp()[1]))
""")
    assert ran.stdout.splitlines() == ["wrote /tmp", "wrote .", "True /scratch"]
    assert not any(Path(folder, mark).exists() for folder in ("/tmp", "/dev/shm", "/", Path.cwd()))
    assert full.run("import os; print(os.listdir('.'))").stdout == "[]\n"


def test_the_scratch_is_small(full):
    assert full.run("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))").error.startswith("OSError: [Errno 2")
    many = "for i in range(9999): open(str(i), 'wb').write(bytes(4096))"
    assert full.run(many).error.startswith("OSError: [Errno 28]")
    still_works(full)


@pytest.mark.parametrize("level", ["full", "namespaces"])
def test_sockets(level):
    """With the filter none can be made; without it there is nothing to reach, not even this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        ran = at(level).run(f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_INET, ("8.8.8.8", 53)),
                        (socket.AF_UNIX, "/run/dbus/system_bus_socket"), (socket.AF_UNIX, "\\0abstract")):
    try:
        socket.socket(family, socket.SOCK_STREAM).connect(address)
        print("connected", address)
    except OSError as error:
        print(type(error).__name__)
print(socket.if_nameindex() if {level!r} != "full" else "")
""")
        assert "connected" not in ran.stdout and len(ran.stdout.splitlines()) == 5
        if level == "full":
            assert ran.stdout.split() == ["PermissionError"] * 4
        else:
            assert ran.stdout.splitlines()[-1] == "[(1, 'lo')]"
        with pytest.raises(TimeoutError):
            server.accept()


def test_asyncio_and_subprocesses_work(full):
    assert full.run("import asyncio\nasyncio.run(asyncio.sleep(0))").ok
    ran = full.run("import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', 'print(1)']))")
    assert ran.stdout == "b'1\\n'\n"
    assert full.run("import multiprocessing as m\nassert m.Lock()\nq = m.Queue()\nq.put(1)\nassert q.get() == 1").ok


@pytest.mark.parametrize("level", ["full", "namespaces"])
def test_killing_the_parent(level):
    sandbox = at(level)
    ran = sandbox.run("""
import os, signal
for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
    for target in (os.getppid(), 1, -1):
        try:
            os.kill(target, number)
        except OSError:
            pass
print("alive")
""")
    assert (ran.outcome, ran.stdout) == ("finished", "alive\n")
    assert sandbox.run("import os\nos.killpg(0, 9)").error == "signal 9"
    assert sandbox.run(f"import os\nos.kill({os.getpid()}, 9)").error.startswith("ProcessLookupError")
    still_works(sandbox)


@pytest.mark.parametrize("level", ["full", "namespaces"])
def test_ptrace(level):
    """Process 1 has capabilities that the program lacks; and the filter has no ptrace at all."""
    ran = at(level).run("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
    print(libc.ptrace(request, 1, None, None), ctypes.get_errno())
data = (ctypes.c_char * 8)()
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here, there = Part(ctypes.addressof(data), 8), Part(0x400000, 8)
print(libc.process_vm_readv(1, ctypes.byref(here), 1, ctypes.byref(there), 1, 0), ctypes.get_errno())
""")
    assert ran.stdout == "-1 1\n-1 1\n-1 1\n"


@pytest.mark.parametrize("level", ["full", "namespaces"])
def test_a_daemon_dies_with_its_run(level):
    mark = secrets.token_hex(8)
    ran = at(level).run(f"""
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)", "{mark}"])
    os._exit(0)
os.wait()
""")
    assert ran.ok, "it was not waited for"
    assert not [line for line in commands() if mark in line]


def test_deleting_the_interpreter(full):
    ran = full.run("""
import os, shutil, sys
shutil.rmtree(os.path.dirname(os.__file__), ignore_errors=True)
for path in (sys.executable, os.__file__, "/usr/lib", "/lib"):
    try:
        os.rename(path, "/scratch/x")
        print("moved", path)
    except OSError as error:
        print(error.errno)
    try:
        os.chmod(path, 0)
    except OSError as error:
        print(error.errno)
""")
    assert "moved" not in ran.stdout and set(ran.stdout.split()) <= {"30", "18", "16", "13", "1"}
    still_works(full)


def test_links_and_proc(full):
    ran = full.run("""
import os
os.symlink("/etc/passwd", "passwd")
os.symlink("../../../../../../..", "up")
tries = ["passwd", "up/etc/passwd", "../../../../etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/root/etc/passwd",
         "/proc/self/fd/0", "/dev/fd/0", "/oldroot/etc/passwd", "/dev/mem", "/dev/sda", "/dev/vda", "/dev/kmsg"]
print([path for path in tries if os.path.exists(path)])
try:
    os.chroot("up")
except OSError as error:
    print(error.errno)
try:
    os.mknod("disk", 0o600 | 0o060000, os.makedev(8, 0))
except OSError as error:
    print(error.errno)
descriptors = []
for number in range(64):
    try:
        os.fstat(number)
        descriptors.append(number)
    except OSError:
        pass
print(descriptors)
""")
    assert ran.stdout.splitlines() == ["[]", "1", "1", "[0, 1, 2, 3]"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls are x86_64's")
def test_system_calls_by_number(full):
    calls = {"socket": 41, "unshare": 272, "mount": 165, "io_uring_setup": 425, "clone3": 435, "memfd_create": 319,
             "bpf": 321, "shmget": 29, "newer than the table": 900}  # fmt: skip
    ran = full.run(f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in {list(calls.values())}:
    print(libc.syscall(number, 0x10000000, 0, 0, 0, 0), ctypes.get_errno())
print(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), ctypes.get_errno())  # clone into a new user namespace
""")
    assert ran.stdout.splitlines() == ["-1 1"] * 4 + ["-1 38"] + ["-1 1"] * 3 + ["-1 38", "-1 1"]
    other_interface = full.run("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)")
    assert other_interface.error == "signal 31"
    still_works(full)


def test_catching_sigterm(full):
    ran = at("full", cpu_s=1).run("""
import signal
for number in signal.valid_signals() - {9, 19}:
    signal.signal(number, lambda *_: print("caught"))
while True:
    try:
        while True: pass
    except BaseException: pass
""")
    assert ran.outcome == "timeout"
    still_works(full)


def test_a_fake_result(full):
    fakes = [
        "finished",
        '{"outcome": "finished", "error": ""}',
        "ended 0 0.0",
        "ready",
        "passed",
        "0" * 32 + "finished ",
    ]
    ran = full.run(f"""
import os, sys
for fake in {fakes!r}:
    print(fake, flush=True)
    for number in range(1, 64):
        try: os.write(number, (fake + "\\n").encode())
        except OSError: pass
os._exit(0)
""")
    assert ran.outcome == "exited"
    late = "import atexit, os\natexit.register(print, 'finished')\nraise ValueError('real')"
    assert full.run(late).error == "ValueError: real"
    assert full.run("import os\nif os.fork(): os._exit(0)").outcome == "exited"
    assert not full.run("import os\nos.close(3)").ok
    still_works(full)


def test_a_program_of_two_megabytes(full):
    assert full.run(f"# {'y' * 2_000_000}\nprint(1)").stdout == "1\n"


def test_many_at_once_keep_their_order(full):
    ran = full.run_all(f"print({i})" if i % 3 else "1/0" for i in range(12))
    assert [one.stdout for one in ran] == [f"{i}\n" if i % 3 else "" for i in range(12)]


def test_whoever_stops_asking_ends_what_still_runs(full):
    mark = secrets.token_hex(8)
    sleeps = (
        f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(3600)', '{mark}'])"
    )
    asked = at("full", wall_s=3600.0).run_all(["print(1)", sleeps, sleeps])
    assert next(asked).ok
    wait_for(lambda: any(mark in line and "sleep(3600)" in line and "JOB" not in line for line in commands()))
    asked.close()
    wait_for(lambda: not any(mark in line for line in commands()))
    still_works(full)


def test_verdicts_do_not_change_from_run_to_run(full):
    program = "print(list({'a', 'b', 'c', 'd', 'e'}), hash('x'))"
    assert full.run(program).stdout == full.run(program).stdout


def test_landlock_closes_the_file_system_where_there_are_no_namespaces(tmp_path):
    sandbox = at("confined", packages=("iniconfig",))
    secret = tmp_path / "secret"
    secret.write_text("very-secret")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    ran = sandbox.run(f"""
import os, signal, subprocess, tempfile
import iniconfig
tries = {{
    "passwd": lambda: open("/etc/passwd").read(),
    "secret": lambda: open({str(secret)!r}).read(),
    "list": lambda: os.listdir("/"),
    "proc": lambda: open("/proc/self/environ").read(),
    "make": lambda: open("/tmp/made-outside", "w"),
    "truncate": lambda: os.truncate({str(secret)!r}, 0),
    "remove": lambda: os.remove({str(secret)!r}),
    "chmod": lambda: os.chmod({str(secret)!r}, 0),
    "times": lambda: os.utime({str(secret)!r}, (0, 0)),
    "shell": lambda: subprocess.run(["/bin/sh", "-c", "true"]),
    "signal": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "thread": lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL),
    "limit": lambda: __import__("resource").prlimit(os.getppid(), 0),
}}
for name, attempt in tries.items():
    try:
        attempt()
        print("did", name)
    except OSError as error:
        pass
open("x", "w").write("1")
print(os.path.dirname(tempfile.mkstemp()[1]) == os.getcwd(), open("/dev/null").read() == "")
""")
    assert ran.stdout == "True True\n", ran
    assert secret.read_text() == "very-secret" and secret.stat().st_mode & 0o777 == 0o666
    assert sandbox.run("import os; os.abort()").error == "signal 6"
    still_works(sandbox)


@pytest.mark.parametrize("level", ["confined", "filter", "limits"])
def test_without_namespaces_nothing_lives_on_either(level):
    sandbox, mark = at(level), secrets.token_hex(8)
    scratch = sandbox.run("import os; open('x', 'w'); os.mkdir('d', 0); print(os.getcwd())").stdout.strip()
    assert Path(scratch).name.startswith("judged-") and not Path(scratch).exists()
    sandbox.run(f"""
import os, sys
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)", "{mark}"])
""")
    assert not [line for line in commands() if mark in line]
    socket_made = sandbox.run("import socket; socket.socket()").ok
    assert socket_made is (level == "limits")


def test_an_unreachable_level_is_refused_and_says_what_a_lower_one_loses(monkeypatch):
    monkeypatch.setattr(
        pool.Sandbox, "_try", lambda self, level: None if level == "limits" else "unshare: not permitted"
    )
    with pytest.raises(SandboxError) as caught:
        Sandbox(LIMITS, "full", 1)
    text = str(caught.value)
    assert "isolation=full or not at all" in text and "full: unshare: not permitted" in text
    assert "launch.isolation=limits" in text and "the network included" in text
    assert Sandbox(LIMITS, "limits", 1).level == "limits"
    with pytest.raises(
        ValueError, match="isolation='none' is not known; use one of full, namespaces, confined, filter, limits"
    ):
        Sandbox(LIMITS, "none", 1)


def test_a_stronger_level_is_taken_where_there_is_one(full):
    assert Sandbox(LIMITS, "limits", 1).level == "full"


def test_a_broken_sandbox_is_no_wrong_answer(full, monkeypatch):
    monkeypatch.setattr(pool, "START", "import sys; sys.exit(1)")
    full.close()
    with pytest.raises(SandboxError, match="gave no answer"):
        full.run("print(1)")
    monkeypatch.setattr(pool, "START", 'print(\'{"failure": "mount: no"}\')')
    with pytest.raises(SandboxError, match="mount: no"):
        list(full.run_all(["print(1)"] * 3))
    full.close()  # a launcher that answered may still be about to end


def test_another_system_is_refused_by_name(monkeypatch):
    for module in (pool, levels):
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(SandboxError, match=r"full: this is darwin\n.*Linux is needed.*\n.*no lower level works either"):
        Sandbox(LIMITS, "full", 1)


def test_a_program_that_hides_its_memory_is_seen(full):
    program = (
        "import ctypes, time\nctypes.CDLL(None).prctl(4, 0)\n"
        + """
import os
for _ in range(4):
    os.fork() or (globals().update(x=b"x" * (150 << 20)), time.sleep(3600))
time.sleep(3600)
"""
    )
    assert full.run(program).outcome == "memory"


def test_limits_are_checked():
    with pytest.raises(ValueError, match="memory_mb=0 must be positive"):
        Limits(**{**asdict(LIMITS), "memory_mb": 0})
    with pytest.raises(ValueError, match=r"cpu_s=0\.5 must be a whole number"):
        Limits(**{**asdict(LIMITS), "cpu_s": 0.5})
    with pytest.raises(ValueError, match="'not_there' is not installed; run `pip install not_there`"):
        Sandbox(Limits(**{**asdict(LIMITS), "packages": ("not_there",)}), "full", 1)


def test_filters_of_both_architectures():
    for machine in ("x86_64", "aarch64"):
        within, among = seccomp.program(machine), seccomp.program(machine, 1234)
        assert len(within) % 8 == len(among) % 8 == 0 and 100 < len(within) // 8 < len(among) // 8 < 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; without root all tests show this")
def test_an_ordinary_user_reaches_the_same_level():
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), None)
    if python is None:
        pytest.skip("no interpreter that every user may run")
    here = Path(shutil.copytree(Path(pool.__file__).parents[2], f"/tmp/sandbox-{secrets.token_hex(4)}/pipeline")).parent
    script = f"""
import sys
sys.path.insert(0, {str(here)!r})
from pipeline.evaluation.sandbox import Limits, Sandbox
sandbox = Sandbox(Limits(**{asdict(LIMITS)!r}), "full", 1)
print(sandbox.level, sandbox.run("import os; print(os.getuid())").stdout, sandbox.run("open('/etc/passwd')").error)
"""
    try:
        command = [python, "-B", "-c", script]
        ran = subprocess.run(command, user=12345, group=12345, extra_groups=[], cwd="/", capture_output=True, text=True)
    finally:
        shutil.rmtree(here)
    if "SyntaxError" in ran.stderr or "cannot import" in ran.stderr:
        pytest.skip("that interpreter is older than this project's")
    assert ran.stdout.split()[:3] == ["full", "1000", "FileNotFoundError:"], ran.stderr


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_gives_the_same_room(monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("bubblewrap is used only where an ordinary user may not make namespaces")
    monkeypatch.setattr(levels, "ways", lambda level: [{"walls": "bubblewrap", "filter": True}])
    sandbox = at("full")
    assert sandbox.run("import os; print(os.getuid(), os.getcwd())").stdout == "1000 /scratch\n"
    assert at("full", cpu_s=1).run("while True: pass").error == "1 s of CPU time are over"
    assert sandbox.run("import os; os.abort()").error == "signal 6"
    assert sandbox.run("open('/etc/passwd')").error.startswith("FileNotFoundError")
    assert sandbox.run("import socket; socket.socket()").error.startswith("PermissionError")
    assert sandbox.run("bytearray(100 << 30)").outcome == "memory"
    still_works(sandbox)


def test_inside_a_container_that_forbids_namespaces():
    """As in one: a filter over the whole process. What works there is named, and works when it is asked for."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(pool.__file__).parents[3])!r})
from pipeline.evaluation.sandbox import Limits, Sandbox, SandboxError, seccomp
seccomp._DENIED = {{name: seccomp._DENIED[name] for name in ("unshare", "setns", "mount", "umount2", "pivot_root")}}
seccomp.install(None)
limits = Limits(**{asdict(LIMITS)!r})
try:
    Sandbox(limits, "full", 1)
except SandboxError as error:
    print(error)
try:
    sandbox = Sandbox(limits, "confined", 1)
    print(sandbox.level, sandbox.run("open('/etc/passwd')").error)
except SandboxError as error:
    print("no user but root may run this interpreter" if "Permission denied" in str(error) else error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    assert lines[1].startswith("  full: [Errno 1] unshare: Operation not permitted"), ran
    if lines[-1] != "no user but root may run this interpreter":
        assert "  or accept what works here with launch.isolation=confined, which is Landlock" in ran.stdout
        assert lines[-1].startswith("confined PermissionError")
