"""Limits that a Linux process sets on itself before it opens a hostile file: rlimits, Landlock and seccomp."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_OPEN_FILES = 64

# Numbers of system calls by machine. Those that start programs, signal or trace other processes, reach the network or
# the kernel's tables are refused with EPERM.
_CALLS = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "clone3": 435,
        "tgkill": 234,
        "network": (41, 42, 43, 44, 45, 46, 47, 49, 50, 53, 288, 299, 307),
        "processes": (57, 58, 59, 62, 101, 200, 129, 297, 310, 311, 322, 424, 434, 438),
        "kernel": (
            *(90, 91, 92, 94, 155, 161, 165, 166, 167, 169, 175, 246, 248, 249, 250, 272, 298, 304, 308, 313),
            *(319, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 442),
        ),
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "clone3": 435,
        "tgkill": 131,
        "network": (198, 199, 200, 201, 202, 203, 206, 207, 211, 212, 242, 243, 269),
        "processes": (221, 281, 129, 117, 130, 138, 240, 270, 271, 424, 434, 438),
        "kernel": (
            *(39, 40, 41, 51, 52, 53, 54, 55, 97, 104, 105, 142, 217, 218, 219, 224, 241, 265, 268, 273, 279, 280),
            *(282, 294, 425, 426, 427, 428, 429, 430, 431, 432, 442),
        ),
    },
}
_NO_NEW_PRIVS, _SET_SECCOMP, _SET_DUMPABLE = 38, 22, 4
_EPERM, _ENOSYS = 1, 38
_THREAD = 0x00010000  # CLONE_THREAD

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# The access rights that Landlock knew with each version of its interface.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def restrict(readable: Sequence[Path], memory_bytes: int, cpu_s: float) -> tuple[str, ...]:
    """Limit this process for good; return the names of the limits that could not be set.

    Args:
        readable: The only files and folders that can be opened afterwards.
        memory_bytes: Address space beyond what is mapped now.
        cpu_s: CPU time from now; when it has run out, SIGPROF ends the process.
    """
    steps: tuple[tuple[tuple[str, ...], Callable[[], None]], ...] = (
        (("memory",), lambda: _limit_memory(memory_bytes)),
        (("cpu",), lambda: _limit_cpu(cpu_s)),
        (("files",), _limit_files),
        (("reading",), lambda: _limit_reading(readable)),
        (("processes", "network"), _limit_calls),
    )
    missing: list[str] = []
    for names, step in steps:
        try:
            step()
        except (OSError, ImportError, AttributeError, ValueError):
            missing += names
    return tuple(missing)


def _limit_memory(memory_bytes: int) -> None:
    import resource  # not on Windows

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes,) * 2)


def _limit_cpu(cpu_s: float) -> None:
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # resource limits count whole seconds
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 2, int(cpu_s) + 3))


def _limit_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))


def _libc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise OSError("not Linux")
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _limit_reading(readable: Sequence[Path]) -> None:
    """Allow nothing of the file system but reading what is named, by Landlock."""
    libc = _libc()
    version = _checked(libc.syscall(_CREATE_RULESET, None, 0, 1))
    handled = max(rights for since, rights in _RIGHTS.items() if since <= version)
    network = 3 if version >= 4 else 0  # binding and connecting TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals
    attributes = ctypes.create_string_buffer(struct.pack("<QQQ", handled, network, scoped))
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    for path in readable:
        with suppress(FileNotFoundError):
            number = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
            rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, number))
            _checked(libc.syscall(_ADD_RULE, rules, 1, rule, 0))
            os.close(number)
    _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _limit_calls() -> None:
    """Refuse system calls that start processes or reach others, the network or the kernel, by seccomp."""
    calls = _CALLS.get(platform.machine())
    if calls is None:
        raise OSError("no table of system calls for this machine")
    libc = _libc()
    program = _filter(calls, os.getpid())
    buffer = ctypes.create_string_buffer(program)
    described = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.prctl(_SET_SECCOMP, 2, ctypes.byref(described), 0, 0))


def _filter(calls: dict[str, object], pid: int) -> bytes:
    """Return the seccomp filter as a program of the Berkeley packet filter."""
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    error = 0x00050000

    def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    refused = sorted({*calls["network"], *calls["processes"], *calls["kernel"]})  # type: ignore[misc]
    parts = [
        op(load, 4),
        op(equal, int(calls["audit"]), 1, 0),  # type: ignore[call-overload]
        op(give, kill),
        op(load, 0),
        op(at_least, 0x40000000, 0, 1),  # the other table of x86-64
        op(give, error | _EPERM),
        op(equal, int(calls["clone3"]), 0, 1),  # type: ignore[call-overload]
        op(give, error | _ENOSYS),  # its flags lie in memory; the C library then calls clone
        op(equal, int(calls["clone"]), 0, 4),  # type: ignore[call-overload]
        op(load, 16),
        op(bits, _THREAD, 0, 1),
        op(give, allow),
        op(give, error | _EPERM),
        op(equal, int(calls["tgkill"]), 0, 4),  # type: ignore[call-overload]
        op(load, 16),
        op(equal, pid, 0, 1),
        op(give, allow),  # abort() signals its own process
        op(give, error | _EPERM),
    ]
    for number in refused:
        parts += [op(equal, number, 0, 1), op(give, error | _EPERM)]
    return b"".join([*parts, op(give, allow)])
