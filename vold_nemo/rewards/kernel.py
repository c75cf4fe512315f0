"""What a Linux kernel takes from a process that asks, without privileges: namespaces, Landlock, a filter of system calls.

Every function says whether the kernel granted it and changes nothing where it did not; what follows from that is
:mod:`vold_nemo.rewards.sandbox`'s to say.  ctypes and the C library alone.  Sources: the manual pages unshare(2),
user_namespaces(7), mount_setattr(2), landlock(7), seccomp(2), capset(2), prctl(2), and the kernel's tables of system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys

NEW_USER, NEW_PID, NEW_NET, NEW_IPC, NEW_MOUNTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x00020000
_PDEATHSIG, _NO_NEW_PRIVS, _SECCOMP, _SUBREAPER, _AMBIENT = 1, 38, 22, 36, 47
_MOUNT_SETATTR, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 442, 444, 445, 446  # the same on every architecture
_READ_ONLY, _NO_SUID, _RECURSIVE, _PRIVATE = 1, 2, 1 << 14, 1 << 18
# The rights of Landlock that change a file or a folder, by the version of its interface that brought them.
_WRITING = sum(1 << bit for bit in (1, *range(4, 13)))
_LATER = {2: 1 << 13, 3: 1 << 14}  # rename into another folder, truncate
_OF_A_FILE = 1 << 1 | 1 << 14

# System calls that a verifier has no use for: sockets, memory that no limit counts, what reaches into other processes, mounts,
# and rings that make such calls unseen.  By machine: (architecture as the filter sees it, numbers).
DENIED = (
    "socket", "io_uring_setup", "memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open", "ptrace",
    "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "add_key", "request_key", "keyctl", "bpf", "userfaultfd",
    "perf_event_open", "unshare", "setns", "mount", "umount2", "move_mount", "open_tree", "fsopen", "mount_setattr",
    "pivot_root", "truncate",
)  # fmt: skip
_NUMBERS = {
    "x86_64": (0xC000003E, (41, 425, 319, 447, 29, 68, 64, 240, 101, 310, 311, 438, 312, 248, 249, 250, 321, 323, 298, 272,
                            308, 165, 166, 429, 428, 430, 442, 155, 76)),
    "aarch64": (0xC00000B7, (198, 425, 279, 447, 194, 186, 190, 180, 117, 270, 271, 438, 272, 217, 218, 219, 280, 282, 241, 97,
                             268, 40, 39, 429, 428, 430, 442, 41, 45)),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _prctl(option: int, *values: int) -> bool:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return _libc is not None and _libc.prctl(option, *padded) == 0


def signal_at_parents_death(number: int) -> bool:
    return _prctl(_PDEATHSIG, number)


def adopt_orphans() -> bool:
    """Descendants whose parent ends become this process's children, not the first process's."""
    return _prctl(_SUBREAPER, 1)


def gain_nothing_by_exec() -> bool:
    """No program that is run gets more rights than this process has; the filters below ask for it."""
    return _prctl(_NO_NEW_PRIVS, 1)


def leave(spaces: int) -> bool:
    """This process (for processes: its children) in new namespaces, all of ``spaces`` or none."""
    return _libc is not None and _libc.unshare(ctypes.c_int(spaces)) == 0


def keep_names(user: int, group: int) -> None:
    """In a new user namespace, be called as outside; without it, files belong to nobody by name (access is the same)."""
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{file}", "w") as target:
            target.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> bool:
    of_kind = kind.encode() if kind is not None else None
    return _libc.mount(source.encode(), target.encode(), of_kind, ctypes.c_ulong(flags), options.encode() or None) == 0


def read_only_mounts(writable: dict[str, int]) -> bool:
    """In a new mount namespace: every mount read-only, but for ``writable``, folders that become empty file systems in
    memory, by their size in bytes.  The processes of this namespace are seen in /proc where the kernel lets it be mounted."""
    if not leave(NEW_MOUNTS) or not _mount("none", "/", None, _RECURSIVE | _PRIVATE):
        return False
    _mount("proc", "/proc", "proc", _NO_SUID)
    attributes = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
    done = _libc.syscall(_MOUNT_SETATTR, -100, b"/", 0x8000, attributes, ctypes.c_size_t(len(attributes)))
    if done != 0:  # before Linux 5.12: one by one
        done = 0 if _each_read_only() else -1
    for folder, size in writable.items():
        if os.path.isdir(folder):
            _mount("tmpfs", folder, "tmpfs", _NO_SUID, f"size={size},mode=700")
    return done == 0


def _each_read_only() -> bool:
    """Each mount that can be reached; one that cannot be looked into cannot be written to either."""
    names = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1 << 10, "nodiratime": 1 << 11, "relatime": 1 << 21}
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for _, _, _, _, point, options, *_ in mounts:
        place = point.encode().decode("unicode_escape")  # \040 stands for a blank
        kept = sum(names.get(option, 0) for option in options.split(","))  # what is set may be locked: it is asked for again
        if not _mount("none", place, None, 32 | 4096 | _READ_ONLY | kept) and ctypes.get_errno() not in (
            errno.EACCES, errno.ENOENT, errno.EINVAL,
        ):  # fmt: skip
            return False
    return True


def landlock_version() -> int:
    """0 where there is none."""
    if _libc is None:
        return 0
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def write_only_below(folders: tuple[str, ...], files: tuple[str, ...] = ("/dev/null",)) -> bool:
    """By Landlock: files are changed below ``folders`` alone; from its versions 4 and 6 on, no TCP and no signal to others."""
    version = landlock_version()
    if version == 0 or not gain_nothing_by_exec():
        return False
    handled = _WRITING | sum(right for since, right in _LATER.items() if version >= since)
    rules = struct.pack("QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size), ctypes.c_uint(0))
    if ruleset < 0:
        return False
    try:
        for path in (*folders, *files):
            if not os.path.exists(path):
                continue
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", handled if path in folders else handled & _OF_A_FILE, opened)
            _libc.syscall(_ADD_RULE, ruleset, 1, rule, ctypes.c_uint(0))
            os.close(opened)
        return _libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint(0)) == 0
    finally:
        os.close(ruleset)


def deny_calls() -> bool:
    """A filter by which the calls of :data:`DENIED` fail with EACCES, for good, in this process and all that it starts."""
    if platform.machine() not in _NUMBERS or _libc is None or not gain_nothing_by_exec():
        return False
    machine, numbers = _NUMBERS[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    denied = 5 + len(numbers)  # index of the last line; a jump counts from the line behind its own
    lines = [(load, 0, 0, 4), (equal, 0, denied - 2, machine)]  # calls as another architecture are denied
    lines += [(load, 0, 0, 0), (at_least, denied - 4, 0, 0x40000000)]  # and so are x32's, which have numbers of their own
    lines += [(equal, denied - len(lines) - 1 - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EACCES)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    asked = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(program)))
    return _prctl(_SECCOMP, 2, ctypes.addressof(asked))


def give_up_capabilities(kept: int = 0) -> bool:
    """Of all rights that root has, or that a new user namespace gave, keep the bits of ``kept``."""
    if _libc is None:
        return False
    _prctl(_AMBIENT, 4)
    header = struct.pack("Ii", 0x20080522, 0)
    return _libc.capset(header, struct.pack("IIIIII", kept, kept, 0, 0, 0, 0)) == 0
