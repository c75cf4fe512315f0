"""Verifiers as a user might write them, good and bad; found by import path in the tests."""

import ctypes
import os
import sys
import time
import zlib

from vold_nemo.rewards import Verdict


def half(response, truth):
    return 0.5 if truth in response else 0.0


def full(response, truth):
    return Verdict(1.0, response, "always right")


def truthy(response, truth):
    return response == truth


def raises(response, truth):
    raise RuntimeError("broken verifier")


def too_much(response, truth):
    return 2.0


def often(response, truth):
    """Right three times in four, by what was said."""
    return float(zlib.crc32(response.encode()) % 4 > 0)


def hangs(response, truth):
    if response == "hang":
        9**9**9**9  # one C call that hears no signal
    return 1.0


def crashes(response, truth):
    if response == "crash":
        ctypes.string_at(0)
    if response == "exit":
        os._exit(3)
    return 1.0


def eats(response, truth):
    return float(len(bytearray(64 << 30)) > 0)


def echo(response, truth):
    return Verdict(float(not response.startswith("0/")), response, "as given")


def sleeps(response, truth):
    time.sleep(float(response))
    return Verdict(1.0, str(os.getpid()), "slept")


def notes(response, truth):
    """``response``: a file to write the truth to."""
    with open(response, "a") as file:
        file.write(truth)
    return 1.0


def process(response, truth):
    return Verdict(1.0, str(os.getpid()), "judged here")


def cores(response, truth):
    return Verdict(1.0, ",".join(map(str, sorted(os.sched_getaffinity(0)))), "allowed here")


def dies_once(response, truth):
    """``response``: a file that says whether it has died before."""
    if not os.path.exists(response):
        open(response, "w").close()
        os._exit(9)
    return 1.0


def prints(response, truth):
    print('["not a verdict"]')
    sys.stdout.flush()
    os.write(1, b"neither this\n")
    return True


not_a_function = 7
