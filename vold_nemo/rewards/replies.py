"""How a worker's reply travels: a mark, a length, a checksum keyed with the question's own number, then JSON.

A verifier shares its process with what answers for it, and may find the descriptor of the replies.  What it writes there is
no reply: it lacks the key, so it is found out at once, and nothing it says is read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from typing import Any

MARK = b"\xd5vr\x1a"
LONGEST = 1 << 16  # bytes of a reply: answers and reasons are cut short before they travel
_HEADER = struct.Struct(">4sI16s")


class Broken(ValueError):
    """What came is no reply."""


def packed(said: Any, key: bytes) -> bytes:
    body = json.dumps(said).encode("ascii")  # surrogates and NULs survive
    return _HEADER.pack(MARK, len(body), _checksum(body, key)) + body


class Replies:
    """Puts the parts of a stream together."""

    def __init__(self) -> None:
        self._came = bytearray()

    def feed(self, chunk: bytes, key: bytes) -> Any | None:
        """The reply once it is whole; None before.

        Raises:
            Broken: another mark, length or checksum, or more than one reply.
        """
        self._came += chunk
        if not self._came.startswith(MARK[: len(self._came)]):
            raise Broken("no reply begins like this")
        if len(self._came) < _HEADER.size:
            return None
        _, length, checksum = _HEADER.unpack_from(self._came)
        if length > LONGEST or len(self._came) > _HEADER.size + length:
            raise Broken("longer than a reply")
        if len(self._came) < _HEADER.size + length:
            return None
        body = bytes(self._came[_HEADER.size :])
        self._came.clear()
        if not hmac.compare_digest(checksum, _checksum(body, key)):
            raise Broken("the checksum is another")
        try:
            return json.loads(body)
        except ValueError:
            raise Broken("not JSON") from None


def _checksum(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=16).digest()
