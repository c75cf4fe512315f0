"""A user's verifier that brings a heavy library."""

import time

time.sleep(1.5)


def right(response, truth):
    return True
