"""Verifiers as a user might write them, good and bad; found by import path in the tests."""

import ctypes
import os
import subprocess
import sys
import threading
import time
import zlib

from vold_nemo.rewards import Verdict

NAME = os.urandom(8).hex()  # of this process: in a namespace of its own each is number 1


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
    return Verdict(1.0, NAME, "slept")


def notes(response, truth):
    """``response``: a file to write the truth to."""
    with open(response, "a") as file:
        file.write(truth)
    return 1.0


def process(response, truth):
    return Verdict(1.0, NAME, "judged here")


def cores(response, truth):
    return Verdict(1.0, ",".join(map(str, sorted(os.sched_getaffinity(0)))), "allowed here")


def dies_once(response, truth):
    """``response``: a file that says whether it has died before."""
    if not os.path.exists(response):
        open(response, "w").close()
        os._exit(9)
    return 1.0


def first_time(file):
    """Whether it does not exist; makes it."""
    there = os.path.exists(file)
    open(file, "w").close()
    return not there


def burn(seconds):
    """Processor time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def computes_once(response, truth):
    if first_time(response):
        burn(60)
    return 1.0


def sleeps_once(response, truth):
    if first_time(response):
        time.sleep(60)
    return 1.0


def in_threads(response, truth):
    threads = [threading.Thread(target=burn, args=(float(response) / 2,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1.0


def in_children(response, truth):
    subprocess.run([sys.executable, "-S", "-c", f"import time\nwhile time.process_time() < {response}: pass"], check=True)
    return 1.0


def prints(response, truth):
    print('["not a verdict"]')
    sys.stdout.flush()
    os.write(1, b"neither this\n")
    return True


not_a_function = 7


def says_much(response, truth):
    return Verdict(1.0, "x" * 1000, "y" * 1000)


def one_parameter(response):
    return 1.0


def three_parameters(response, truth, question):
    return 1.0


def by_name_alone(*, response, truth):
    return 1.0


async def awaited(response, truth):
    return 1.0


async def streams(response, truth):
    yield 1.0


class Awaits:
    async def __call__(self, response, truth):
        return 1.0


class Callable:
    """Called, it is made, and no reward."""

    def __init__(self, response, truth):
        pass

    def __call__(self, response, truth):
        return 1.0


Awaited = Awaits()
instance = Callable("", "")
in_c = int  # tells no signature


def keywords(*arguments, **named):
    return 1.0


def returns_dict(response, truth):
    return {"score": 1.0}


def forgets(response, truth):
    print(response == truth)


def returns_coroutine(response, truth):
    return awaited(response, truth)


def from_minus_one(response, truth):
    return 1.0 if truth in response else -1.0
