"""CUDA kernels inside a shared library: which architectures it has, and a copy of it that keeps some of them.

A library of CUDA code carries a section ``.nv_fatbin`` of regions, each a header (magic, version, header's size, size of what
follows) and entries, each of one architecture (kind: 1 PTX, 2 machine code; header's size; payload's size; at byte 28 the
architecture as ten times the compute capability).  The driver takes the entry that fits and never looks at the others: their
bytes may be zeros, which compress to nothing.  Nothing moves, so that the file stays the library that it was.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SECTION, MAGIC, MACHINE_CODE = ".nv_fatbin", 0xBA55ED50, 2


@dataclass(frozen=True)
class Entry:
    """One kernel image: where its payload lies in the file."""

    kind: int
    arch: int
    start: int
    size: int


def entries(library: bytes | bytearray) -> list[Entry]:
    """Every kernel image of an ELF file, in order.

    :raises ValueError: no 64-bit ELF file, no section of kernels, or an entry that reaches beyond it.
    """
    start, size = _section(library)
    found, at, end = [], start, start + size
    while at + 16 <= end:
        magic, _, header, length = struct.unpack_from("<IHHQ", library, at)
        if magic != MAGIC:
            at += 8  # regions are aligned; between them lies padding
            continue
        found += _of_region(library, at + header, at + header + length, end)
        at += header + length
    return found


def _of_region(library, at: int, end: int, limit: int) -> Iterator[Entry]:
    while at < end:
        kind, _, header = struct.unpack_from("<HHI", library, at)
        (size,) = struct.unpack_from("<Q", library, at + 8)
        (arch,) = struct.unpack_from("<I", library, at + 28)
        if header < 32 or at + header + size > min(end, limit):
            raise ValueError(f"an entry of {SECTION} at byte {at} reaches beyond its region: another format than is known")
        yield Entry(kind, arch, at + header, size)
        at += header + size


def by_architecture(library: bytes | bytearray) -> dict[int, int]:
    """Bytes of kernel images by architecture."""
    found: Counter[int] = Counter()
    for entry in entries(library):
        found[entry.arch] += entry.size
    return dict(sorted(found.items()))


def keep(library: bytearray, arch: int) -> int:
    """Zero, in place, every image that a GPU of architecture ``arch`` (90) does not run; returns the bytes zeroed.

    :raises ValueError: as :func:`entries`, or where nothing of that architecture would be left.
    """
    found = entries(library)
    if not any(entry.arch == arch and entry.kind == MACHINE_CODE for entry in found):
        there = ", ".join(map(str, sorted({entry.arch for entry in found})))
        raise ValueError(f"no kernels for architecture {arch}; the library has {there}")
    zeroed = 0
    for entry in found:
        if entry.arch != arch:
            library[entry.start : entry.start + entry.size] = bytes(entry.size)
            zeroed += entry.size
    return zeroed


def _section(library) -> tuple[int, int]:
    """(offset, size) of :data:`SECTION`."""
    if len(library) < 64 or bytes(library[:5]) != b"\x7fELF\x02":
        raise ValueError("no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    width, count, names = struct.unpack_from("<HHH", library, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", library, table + number * width) for number in range(count)]
    for name, _, _, _, offset, size in rows:
        begin = rows[names][4] + name
        if bytes(library[begin : library.index(b"\0", begin)]).decode() == SECTION:
            return offset, size
    raise ValueError(f"no section {SECTION}: a library without CUDA kernels")
