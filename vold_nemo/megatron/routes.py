"""Who sends what to whom in a weight sync: from placements and what engines keep to rounds of moves.

Who has what: a *piece* is a box of a Hugging Face tensor that lies in one parameter (:mod:`vold_nemo.megatron.names`).  Tensor
rank t of a stage holds the t-th part of each split parameter, every rank of a stage its norms and router, a rank of the expert
group whole experts; padding rows are no piece.

Who wants what: the engine says it (``keeps``), as one box of each tensor on each rank of the world: all of it, or the slice
that is its share of a tensor-parallel engine.  Trainer and engine need not be split alike.

What a rank holds itself it reads from its own parameters.  The rest comes from the nearest holder, in *rounds*, in which a rank
sends or receives about ``names.ROUND`` bytes at most, of as many tensors as fit.  A tensor that is larger comes in parts.
Rounds take the layers of all pipeline stages in step, so that no stage sends alone.

Every rank makes the same plan, from shapes and the layout alone; nothing is asked of other ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch.distributed as dist
from torch import Tensor

from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import Placement, placements, stage_of
from vold_nemo.megatron.parallel import Layout

Box = tuple[tuple[int, int], ...]  # (start, stop) along every axis of a tensor
Keeps = Callable[[str, Sequence[int], int], Box]  # (name on disk, shape, rank of the world): what its engine keeps


@dataclass(frozen=True)
class Seat:
    """A rank that takes part: its number in the world, and what it holds."""

    rank: int
    stage: int
    tensor: int
    expert: int


@dataclass(frozen=True)
class Piece:
    """A box of a Hugging Face tensor that lies in one parameter, from ``at`` on along the placement's axis."""

    box: Box
    place: Placement
    at: int
    stage: int
    tensor: int | None  # the tensor rank that holds it, None: every one
    expert: int | None  # the expert rank that holds it, None: every one

    def lies_with(self, seat: Seat) -> bool:
        return seat.stage == self.stage and self.tensor in (None, seat.tensor) and self.expert in (None, seat.expert)

    def cut(self, parameters: Mapping[str, Tensor], box: Box) -> Tensor:
        """A view of ``box``, which lies inside this piece."""
        whole, at = parameters[self.place.megatron], self.at
        if self.place.packed:  # the experts of a layer are one tensor: this is one of them
            whole, at = (whole.t() if self.place.transposed else whole)[None], 0
        starts = [-first for first, _ in self.box]
        starts[0 if self.place.packed else self.place.axis] += at
        return whole[tuple(slice(a + start, z + start) for (a, z), start in zip(box, starts, strict=True))]

    def is_one_stretch(self, box: Box) -> bool:
        """Whether ``box`` lies in one stretch of the parameter's memory: all axes but the parameter's first are whole."""
        behind = {axis for axis in range(len(box)) if axis > self.place.packed}
        if self.place.packed and self.place.transposed:
            behind = {1}
        return all(box[axis] == self.box[axis] for axis in behind)

    def as_it_lies(self, value: Tensor) -> Tensor:
        """A box of this piece in the parameter's order of axes, or one in that order as the box."""
        return value.transpose(-1, -2) if self.place.packed and self.place.transposed else value


@dataclass(frozen=True)
class Move:
    """``box`` of a tensor, out of ``piece``, from one rank of the exchange to another (or to itself)."""

    source: int
    target: int
    piece: Piece
    box: Box
    alone: bool = False  # a message of its own, from the parameter itself

    @cached_property
    def size(self) -> int:
        return volume(self.box)


@dataclass
class Item:
    """A tensor, or one part of it, as it concerns this rank; sizes are of all ranks."""

    name: str
    stage: int | None  # None: a table of the vocabulary in parts, which goes alone
    wanted: Box  # by this rank: of the whole tensor, all parts together
    moves: list[Move]  # from or to this rank
    sent: list[int]  # elements, by rank of the exchange
    received: list[int]
    packed: bool  # some rank puts some of it into the round's all-to-all
    cut: bool = False
    last: bool = True


@dataclass
class Round:
    """What moves at a time."""

    sent: list[int]
    received: list[int]
    items: list[Item] = field(default_factory=list)

    def fits(self, item: Item, limit: int) -> bool:
        both = zip((*self.sent, *self.received), (*item.sent, *item.received), strict=True)
        return all(had + more <= limit for had, more in both)

    @property
    def packed(self) -> bool:
        return any(item.packed for item in self.items)

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.sent = [a + b for a, b in zip(self.sent, item.sent, strict=True)]
        self.received = [a + b for a, b in zip(self.received, item.received, strict=True)]


def volume(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def _common(one: Box, other: Box) -> Box | None:
    """What two boxes share; None for nothing."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return found if all(start < stop for start, stop in found) else None


def _part(box: Box, number: int, of: int) -> Box:
    """The ``number``-th of ``of`` nearly equal parts along the first axis."""
    (start, stop), *rest = box
    rows = stop - start
    return ((start + rows * number // of, start + rows * (number + 1) // of), *rest)


def pieces(arch: Architecture, padded_vocabulary: int, layout: Layout) -> dict[str, list[Piece]]:
    """Of every tensor of the language backbone, in the order of the model."""
    found: dict[str, list[Piece]] = {}
    for place in placements(arch, layout.tensor, padded_vocabulary):
        stage = stage_of(place, arch, layout.pipeline, layout.virtual)
        expert = None if place.expert is None else place.expert // (arch.experts // layout.expert)
        for rank in range(layout.tensor) if place.split else (None,):
            at = 0
            for block in place.part(rank or 0, layout.tensor):
                if block.source is not None:
                    box = list(whole(place.shapes[block.source]))
                    if place.packed:
                        box[0] = (place.expert, place.expert + 1)
                    else:
                        box[place.axis] = (block.start, block.start + block.size)
                    piece = Piece(tuple(box), place, at, stage, rank, expert)
                    found.setdefault(place.hf[block.source], []).append(piece)
                at += block.size
    return found


def seats(arch: Architecture, layout: Layout) -> tuple[dist.ProcessGroup, list[Seat]]:
    """The smallest group of megatron-core's that holds a whole copy of the model, and who sits in it.

    These are a tensor group's ranks on every stage; where the model has experts and they are spread wider, an expert group's;
    the world where neither contains the other.
    """
    from megatron.core import parallel_state

    if not arch.experts or layout.tensor % layout.expert == 0:
        group = layout.model_group
    elif layout.expert % layout.tensor == 0:
        group = parallel_state.get_expert_tensor_model_pipeline_parallel_group()
    else:
        group = dist.group.WORLD
    stage = layout.world // layout.pipeline  # ranks are numbered tensor first, pipeline last
    found = [
        Seat(rank, rank // stage, rank % layout.tensor, rank % stage % layout.expert)
        for rank in dist.get_process_group_ranks(group)
    ]
    return group, found


class Plan:
    """Rounds of an exchange among ``at``, as seat number ``me`` takes part in them; at most ``limit`` elements in each.

    Pieces of ``long`` elements and more that lie in one stretch of their parameter go alone.
    """

    def __init__(
        self, has: Mapping[str, list[Piece]], at: list[Seat], me: int, keeps: Keeps, limit: int, long: float = math.inf
    ):
        self._at, self._me, self._limit, self._long = at, me, limit, long
        self._holders: dict[tuple, list[int]] = {}
        self.rounds: list[Round] = []
        items = [item for name, some in has.items() for item in self._items(name, some, keeps)]
        for item in _in_step(items):
            if not self.rounds or not self.rounds[-1].fits(item, limit):
                self.rounds.append(Round([0] * len(at), [0] * len(at)))
            self.rounds[-1].add(item)
        self.sent = max(map(self._packed, self.rounds), default=0)  # elements that this rank packs for a round, at most,
        self.received = max((one.received[me] for one in self.rounds), default=0)  # and that it receives
        largest: dict[int | None, int] = {}  # of a stage: the next one begins when the last part of this one has come
        for item in (item for one in self.rounds for item in one.items if self.is_put_together(item)):
            largest[item.stage] = max(largest.get(item.stage, 0), volume(item.wanted))
        alone = largest.pop(None, 0)
        starts = itertools.accumulate(largest.values(), initial=0)
        self.place = dict(zip(largest, starts, strict=False)) | {None: 0}  # where a stage's tensors are put together, and
        self.together = max(alone, sum(largest.values()))  # in how much memory, in elements

    def totals(self) -> tuple[list[int], list[int]]:
        """Elements that this rank receives from, and sends to, each rank of the exchange in all rounds."""
        inward, outward = [0] * len(self._at), [0] * len(self._at)
        for move in (move for one in self.rounds for item in one.items for move in item.moves if move.source != move.target):
            if move.target == self._me:
                inward[move.source] += move.size
            else:
                outward[move.target] += move.size
        return inward, outward

    def _packed(self, one: Round) -> int:
        moves = (move for item in one.items for move in item.moves if move.source == self._me != move.target)
        return sum(move.size for move in moves if not move.alone)

    def is_put_together(self, item: Item) -> bool:
        """Whether what arrives has to be copied into a tensor of its own before it is one."""
        return item.cut or sum(move.target == self._me for move in item.moves) != 1

    def _items(self, name: str, has: list[Piece], keeps: Keeps) -> Iterator[Item]:
        shape = [max(piece.box[axis][1] for piece in has) for axis in range(len(has[0].box))]
        wanted = [keeps(name, shape, seat.rank) for seat in self._at]
        moves = list(self._moves(name, has, wanted))
        item = self._item(name, has[0].stage, wanted[self._me], moves)
        parts = -(-max(*item.sent, *item.received) // self._limit)
        if parts <= 1:
            yield item
            return
        stage = None if has[0].place.layer is None else has[0].stage
        for number in range(parts):
            some = [self._move(move.source, move.target, move.piece, _part(move.box, number, parts)) for move in moves]
            item = self._item(name, stage, wanted[self._me], [move for move in some if move.size])
            item.cut, item.last = True, number == parts - 1
            yield item

    def _moves(self, name: str, has: list[Piece], wanted: list[Box]) -> Iterator[Move]:
        known: dict[Box, list[tuple[Piece, Box]]] = {}  # ranks want alike
        for target, box in enumerate(wanted):
            if box not in known:
                known[box] = [(piece, both) for piece in has if (both := _common(piece.box, box))]
                if sum(volume(both) for _, both in known[box]) != volume(box):
                    raise RuntimeError(f"weight sync: no rank holds all that an engine keeps of {name}: {box}")
            for piece, both in known[box]:
                yield self._move(self._holder(piece, target), target, piece, both)

    def _move(self, source: int, target: int, piece: Piece, box: Box) -> Move:
        return Move(source, target, piece, box, volume(box) >= self._long and piece.is_one_stretch(box))

    def _item(self, name: str, stage: int | None, wanted: Box, moves: list[Move]) -> Item:
        mine = [move for move in moves if self._me in (move.source, move.target)]
        packed = any(move.source != move.target and not move.alone for move in moves)
        item = Item(name, stage, wanted, mine, [0] * len(self._at), [0] * len(self._at), packed)
        for move in moves:
            if move.source != move.target:
                item.sent[move.source] += move.size
                item.received[move.target] += move.size
        return item

    def _holder(self, piece: Piece, target: int) -> int:
        """Who sends ``piece`` to ``target``: itself, or the holder that sits most like it on the other stage."""
        known = piece.stage, piece.tensor, piece.expert
        if known not in self._holders:
            self._holders[known] = [n for n, seat in enumerate(self._at) if piece.lies_with(seat)]
        each = len(self._at) // len({seat.stage for seat in self._at})
        return min(self._holders[known], key=lambda n: (n != target, abs(n % each - target % each), n))


def _in_step(items: list[Item]) -> list[Item]:
    """Tables in parts first, one after the other; then all stages' tensors in step, each stage's in the order of the model."""
    totals: dict[int | None, int] = {}
    for item in items:
        totals[item.stage] = totals.get(item.stage, 0) + sum(item.received) + 1
    before, order = dict.fromkeys(totals, 0), []
    for item in items:
        order.append(-1 if item.stage is None else before[item.stage] / totals[item.stage])
        before[item.stage] += sum(item.received) + 1
    return [items[n] for n in sorted(range(len(items)), key=order.__getitem__)]
