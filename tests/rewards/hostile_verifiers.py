"""Verifiers that mean harm, or do it: found by import path in test_isolation.py."""

import ctypes
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory

from vold_nemo.rewards import Verdict
from vold_nemo.rewards.replies import MARK


def right(response, truth):
    return 1.0


def environment(response, truth):
    return Verdict(1.0, ",".join(sorted(os.environ)), "its variables")


def mapped(response, truth):
    """Touch 40 GiB of memory that is shared, and so is nobody's own."""
    size = 40 << 30
    held = mmap.mmap(-1, size)
    for at in range(0, size, 1 << 20):
        held[at] = 1
    return 1.0


def segment(response, truth):
    shared_memory.SharedMemory(name=truth, create=True, size=20 << 30).buf[0] = 1
    return 1.0


def memory_files(response, truth):
    kept = [os.memfd_create(str(number)) for number in range(8)]
    return float(len(kept) == 8)


def connects(response, truth):
    host, port = truth.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as there:
        there.sendall(b"the answers")
    return 1.0


def datagram(response, truth):
    host, port = truth.split(":")
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, int(port)))
    return 1.0


def at_a_path(response, truth):
    socket.socket(socket.AF_UNIX).connect(truth)
    return 1.0


def writes(response, truth):
    with open(truth, "a") as file:
        file.write("changed")
    return 1.0


def creates(response, truth):
    open(truth + ".new", "w").close()
    return 1.0


def removes(response, truth):
    os.remove(truth)
    return 1.0


def renames(response, truth):
    os.rename(truth, truth + ".away")
    return 1.0


def truncates(response, truth):
    os.truncate(truth, 0)
    return 1.0


def in_its_own_folder(response, truth):
    import tempfile

    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("notes")
        file.seek(0)
        return Verdict(float(file.read() == "notes"), file.name, "written and read")


def breaks_out(response, truth):
    """Mount what was taken away anew."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(0x10000000 | 0x00020000)
    libc.mount(b"none", b"/", None, ctypes.c_ulong(32 | 4096), None)
    return writes(response, truth)


def bombs(response, truth):
    while True:
        os.fork()


def leaves_children(response, truth):
    """A daemon as they are made: two forks and a session of its own; it bears ``truth`` as its last argument."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", truth])
        os._exit(0)
    return 1.0


def leaves_programs(response, truth):
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)", truth], start_new_session=True)
    return 1.0


def leaves_a_thread(response, truth):
    threading.Thread(target=lambda: (time.sleep(0.2), os._exit(9)), daemon=True).start()
    return 1.0


def waits_in_a_thread(response, truth):
    thread = threading.Thread(target=time.sleep, args=(600,))
    thread.start()
    thread.join()
    return 1.0


def ignores_signals(response, truth):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def stops_itself(response, truth):
    os.kill(os.getpid(), signal.SIGSTOP)
    while response != "x":
        pass
    time.sleep(600)
    return 1.0


def leaves(response, truth):
    os._exit(0)


def _descriptors():
    return [number for number in map(int, os.listdir("/proc/self/fd")) if number > 2]


def noise(response, truth):
    """Into every descriptor that there is."""
    for number in _descriptors():
        try:
            os.write(number, b'[1.0, null, "right", null, false]\n')
        except OSError:
            continue
    return 0.0


def forges(response, truth):
    """A reply with mark and length, but no key."""
    body = b'[1.0, null, "right", null, false, 0.0]'
    for number in _descriptors():
        try:
            os.write(number, MARK + struct.pack(">I", len(body)) + bytes(16) + body)
        except OSError:
            continue
    return 0.0


def floods(response, truth):
    for number in _descriptors():
        try:
            while True:
                os.write(number, b"x" * (1 << 20))
        except OSError:
            continue
    return 0.0


def huge(response, truth):
    return Verdict(1.0, "x" * (50 << 20), "y" * (50 << 20))


def loud(response, truth):
    for _ in range(200):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr, flush=True)
    os.write(1, b"z" * 1_000_000)
    return 1.0


def reads(response, truth):
    return Verdict(1.0, sys.stdin.read() + os.read(0, 100).decode(), "nothing was there")


def others(response, truth):
    """What it can see of, and do to, the process with the number ``truth``."""
    try:
        with open(f"/proc/{truth}/environ", "rb") as file:
            return Verdict(1.0, file.read().decode(errors="replace"), "read")
    except OSError:
        pass
    os.kill(int(truth), signal.SIGKILL)
    return 1.0


def work(rounds):
    """A fixed amount of it."""
    total = 0
    for i in range(rounds):
        total = (total * 31 + i) % 1_000_003
    return total


def works(response, truth):
    """``response``: how much, and a number of its own."""
    return float(work(int(response.partition("/")[0])) >= 0)
