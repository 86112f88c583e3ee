"""A filter of system calls for programs that nobody has read (seccomp mode 2, a classic BPF program).

Namespaces and limits do the containing. The filter takes away what could lead around them: calls that make sockets,
look into other processes, build new namespaces or mounts, hold memory that no limit counts, or reach rarely used parts
of the kernel. Calls newer than this table do not exist for the program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from pipeline.evaluation.sandbox import kernel

# name: (x86_64, aarch64); None where an architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets: there is no network, not even with oneself
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # memory that belongs to no process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180),
    # large and seldom used parts of the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0), "io_submit": (209, 2),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "personality": (135, 92), "modify_ldt": (154, None), "lookup_dcookie": (212, 18),
    # the machine itself
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "iopl": (172, None), "ioperm": (173, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "vhangup": (153, 58),
}  # fmt: skip
_DENIED_AMONG_OTHERS: dict[str, tuple[int | None, int | None]] = {
    # signals to others, by whatever name, and their limits and priorities
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setpriority": (141, 140), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
    # what Landlock does not see: modes, owners, times and attributes of files
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14),
    "lremovexattr": (198, 15),
}  # fmt: skip
_TGKILL, _PRLIMIT = {"x86_64": 234, "aarch64": 131}, {"x86_64": 302, "aarch64": 261}
_CLONE, _SOCKETPAIR = {"x86_64": 56, "aarch64": 220}, {"x86_64": 53, "aarch64": 199}
_CLONE3, _NEWEST = 435, 462
"""Where clone3, whose flags no filter can see, is missing, C libraries fall back to clone. 462 is mseal, of 2024."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the first argument's lower half
_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
)  # fmt: skip
_AF_UNIX = 1
_MODE_FILTER = 2


def supported() -> bool:
    """Whether the table has this machine's architecture."""
    return os.uname().machine in _ARCHITECTURES


def program(machine: str, alone: int | None = None) -> bytes:
    """The filter, as an array of struct sock_filter.

    Args:
        machine: an architecture ("x86_64", "aarch64").
        alone: the pid of a program without a PID namespace: it may signal itself and nobody else. None if it has one.
    """
    column = list(_ARCHITECTURES).index(machine)
    table = _DENIED if alone is None else {**_DENIED, **_DENIED_AMONG_OTHERS}
    denied = [numbers[column] for numbers in table.values()]
    return b"".join(
        [
            _op(_LOAD, _ARCHITECTURE),
            *_unless(_EQUAL, _ARCHITECTURES[machine], _KILL_PROCESS),
            _op(_LOAD, _NUMBER),
            *([_op(_AT_LEAST, _X32, 0, 1), _op(_RETURN, _KILL_PROCESS)] if machine == "x86_64" else []),
            *_when(_AT_LEAST, _NEWEST + 1, _ERRNO | errno.ENOSYS),
            *_when(_EQUAL, _CLONE3, _ERRNO | errno.ENOSYS),
            *(op for number in denied if number is not None for op in _when(_EQUAL, number, _ERRNO | errno.EPERM)),
            *_by_argument(_CLONE[machine], _when(_ANY_BIT, _NAMESPACES, _ERRNO | errno.EPERM)),
            *_by_argument(_SOCKETPAIR[machine], _unless(_EQUAL, _AF_UNIX, _ERRNO | errno.EPERM)),
            *([] if alone is None else _by_argument(_TGKILL[machine], _unless(_EQUAL, alone, _ERRNO | errno.EPERM))),
            *([] if alone is None else _by_argument(_PRLIMIT[machine], _unless(_EQUAL, 0, _ERRNO | errno.EPERM))),
            _op(_RETURN, _ALLOW),
        ]
    )


def install(alone: int | None) -> None:
    """Bind this process and all that it starts to the filter, for good. Raises OSError if the kernel has none."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("operations", ctypes.c_char_p))

    code = program(os.uname().machine, alone)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    holder = Program(len(code) // 8, code)
    kernel.prctl(kernel.PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(holder), about="seccomp filter")


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _by_argument(number: int, judged: list[bytes]) -> list[bytes]:
    """For one call: `judged` over its first argument, then allowed. Other calls pass over it."""
    inside = [_op(_LOAD, _ARGUMENT), *judged, _op(_RETURN, _ALLOW)]
    return [_op(_EQUAL, number, 0, len(inside)), *inside]


def _when(test: int, value: int, action: int) -> list[bytes]:
    return [_op(test, value, 0, 1), _op(_RETURN, action)]


def _unless(test: int, value: int, action: int) -> list[bytes]:
    return [_op(test, value, 1, 0), _op(_RETURN, action)]
