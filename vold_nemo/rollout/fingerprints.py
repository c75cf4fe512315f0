"""Do two sets of named tensors hold the same bits?  A fingerprint of each tensor, small, made in one pass over its memory.

On a CPU it is the 128-bit XXH3 hash of the tensor's bytes: whatever changes there, it changes.  torch has no operation that
hashes a GPU's memory where it lies; there it is :func:`block_sums`.  So both sets must be on devices of one kind, as a trainer
and an engine that share a device are.

A fingerprint reads the whole tensor, or a part of it: blocks k, k + n, ... of :data:`BLOCK` bytes.  The parts (0, n) to
(n - 1, n) read every byte, and each of them reads the bytes behind the last whole block, and all of a tensor that has fewer
than n blocks.  A part shows at once what goes wrong with tensors as they are copied: one that is stale, cast otherwise, cut,
or exchanged for another, and halves, shards or heads that changed places.  Single elements it shows one time in n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

STRIDE = 1021  # 64-bit words; prime, so that whole heads, rows or shards are never a multiple of it apart
ROWS = 64  # of STRIDE words, in a block
BLOCK = 8 * STRIDE * ROWS  # bytes, about half a megabyte: what was just read is still in the processor's cache


@dataclass(frozen=True)
class Part:
    """The ``k``-th of ``n`` parts."""

    k: int = 0
    n: int = 1

    def of(self, blocks: int) -> slice:
        """Which of a tensor's whole ``blocks`` it reads."""
        return slice(self.k, blocks, self.n) if blocks >= self.n else slice(0, blocks)


WHOLE = Part()


def fingerprint(tensor: Tensor, part: Part = WHOLE) -> Tensor:
    """int64, on ``tensor``'s device: nothing waits for a GPU here."""
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if octets.device.type != "cpu":
        return block_sums(octets, part)
    found, memory = xxhash.xxh3_128(), octets.numpy()
    for first, last in _stretches(len(memory), BLOCK, part):
        found.update(memory[first:last])
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.int64)


def fingerprint_and_total(tensor: Tensor, part: Part = WHOLE) -> tuple[Tensor, Tensor]:
    """:func:`fingerprint` and :func:`total`; on a CPU in one pass, block by block while it is in the processor's cache."""
    values = tensor.detach().contiguous().reshape(-1)
    if values.device.type != "cpu":
        return fingerprint(values, part), total(values, part)
    found, memory, sums, size = xxhash.xxh3_128(), values.view(torch.uint8).numpy(), [], values.element_size()
    for first, last in _stretches(len(memory), BLOCK, part):
        found.update(memory[first:last])
        sums.append(values[first // size : last // size].sum())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.int64), torch.stack(sums).sum()


def _stretches(size: int, block: int, part: Part) -> Iterator[tuple[int, int]]:
    """(first, last) of what ``part`` reads of ``size`` entries, ``block`` of them in a block."""
    blocks = size // block
    yield from ((block * b, block * (b + 1)) for b in range(blocks)[part.of(blocks)])
    yield block * blocks, size


def block_sums(octets: Tensor, part: Part = WHOLE) -> Tensor:
    """:data:`STRIDE` integer sums over the 64-bit words of a vector of bytes, then the bytes that fill no word.

    A block's words are w[b, i, j], i < ROWS and j < STRIDE; the words behind the last whole block are one more, filled up with
    zeros.  Over the blocks that are read, counted by b = 0, 1, ...,

        s_j = sum_b (2 b + 1) sum_i w[b, i, j]  modulo 2^64.

    Integer sums have no rounding: every order of summation gives the same.  Any change of one word is seen, since its factor is
    odd.  Not seen are words of one block that changed places with words a multiple of STRIDE away, and changes of several
    words that cancel in such a sum: neither comes from a wrong copy, a stale tensor, or exchanged rows, heads or shards.
    """
    octets = octets if octets.storage_offset() % 8 == 0 else octets.clone()
    blocks, count = octets.numel() // BLOCK, octets.numel() // 8
    words, rest = octets[: 8 * count].view(torch.int64), octets[8 * count :].to(torch.int64)
    whole, behind = words.split([blocks * BLOCK // 8, count - blocks * BLOCK // 8])
    inside = whole.view(blocks, ROWS, STRIDE)[part.of(blocks)].sum(1)
    factors = torch.arange(1, 2 * len(inside) + 3, 2, device=octets.device)
    sums = (inside * factors[:-1, None]).sum(0)
    full = len(behind) // STRIDE * STRIDE
    last = behind[:full].view(-1, STRIDE).sum(0) if full else torch.zeros_like(sums)
    last[: len(behind) - full] += behind[full:]
    return torch.cat([sums + factors[-1] * last, rest])


def total(tensor: Tensor, part: Part = WHOLE) -> Tensor:
    """Sum of what ``part`` reads, in ``tensor``'s dtype: not finite if one of its values is not."""
    values = tensor.detach().contiguous().reshape(-1)
    if part.n == 1:
        return values.sum()
    width = BLOCK // values.element_size()
    blocks = len(values) // width
    return values[: blocks * width].view(blocks, width)[part.of(blocks)].sum() + values[blocks * width :].sum()


class Fingerprints:
    """Of named tensors, in whatever order they come; with ``totals`` it is known, too, whether their values are finite."""

    def __init__(self, part: Part = WHOLE, *, totals: bool = False):
        self.part = part
        self._totals: dict[str, Tensor] | None = {} if totals else None
        self._kinds: dict[str, str] = {}
        self._marks: dict[str, Tensor] = {}

    @classmethod
    def of(cls, named_tensors: Iterable[tuple[str, Tensor]], part: Part = WHOLE, *, totals: bool = False) -> Fingerprints:
        found = cls(part, totals=totals)
        for name, tensor in named_tensors:
            found.add(name, tensor)
        return found

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, name: str, tensor: Tensor) -> None:
        self._kinds[name] = f"{tuple(tensor.shape)} {tensor.dtype}"
        if self._totals is None:
            self._marks[name] = fingerprint(tensor, self.part)
        else:
            self._marks[name], self._totals[name] = fingerprint_and_total(tensor, self.part)

    def read(self) -> dict[str, bytes]:
        """Part, shape, dtype and bits of each tensor.  One transfer for all of them."""
        if not self._marks:
            return {}
        marks = torch.cat(list(self._marks.values())).cpu().split([len(mark) for mark in self._marks.values()])
        return {
            name: f"{self.part} {self._kinds[name]}".encode() + mark.numpy().tobytes()
            for name, mark in zip(self._marks, marks, strict=True)
        }

    def checksum(self) -> str:
        """One for all, their names too."""
        found = xxhash.xxh3_128()
        for name, said in sorted(self.read().items()):
            found.update(f"{name} {len(said)} ".encode() + said)
        return found.hexdigest()

    def differences(self, other: Fingerprints) -> list[str]:
        """Names that only one of the two knows, or whose tensors differ in shape, dtype or a bit."""
        mine, theirs = self.read(), other.read()
        return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))

    def not_finite(self) -> list[str]:
        """Names of tensors with a value that is not finite.  One transfer."""
        if not self._totals:
            return []
        finite = torch.isfinite(torch.stack(list(self._totals.values()))).tolist()
        return [name for name, good in zip(self._totals, finite, strict=True) if not good]
