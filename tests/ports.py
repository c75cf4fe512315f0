"""Ports for processes that meet each other."""

import random
import socket

_BELOW_THE_SYSTEMS_OWN = range(20_000, 32_000)  # outgoing connections take theirs from 32768 on


def free_port() -> int:
    """A port that is free now, and that no connection of another test is given before it is used."""
    while True:
        port = random.SystemRandom().choice(_BELOW_THE_SYSTEMS_OWN)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
