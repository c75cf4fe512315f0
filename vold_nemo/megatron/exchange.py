"""From Megatron's parameters to the engines: every rank receives the part of each tensor that its engine keeps, and no more.

Who has what: a *piece* is a box of a Hugging Face tensor that lies in one parameter (:mod:`vold_nemo.megatron.names`).  Tensor
rank t of a stage holds the t-th part of each split parameter, every rank of a stage its norms and router, a rank of the expert
group whole experts; padding rows are no piece.

Who wants what: the engine says it (``keeps``), as one box of each tensor on each rank of the world: all of it, or the slice
that is its share of a tensor-parallel engine.  Trainer and engine need not be split alike.

How it moves: what a rank holds itself it reads from its own parameters.  The rest comes from the nearest holder, in *rounds*:
one all-to-all each, in which a rank sends or receives about ``names.ROUND`` bytes at most, of as many tensors as fit.  A tensor
that is larger comes in parts.  Rounds take the layers of all pipeline stages in step, so that no stage sends alone.

Every rank makes the same plan, from shapes and the layout alone; nothing is asked of other ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.megatron.architecture import HEAD, Architecture
from vold_nemo.megatron.names import ROUND, Placement, placements, stage_of
from vold_nemo.megatron.parallel import Layout
from vold_nemo.megatron.weights import held_here

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


@dataclass(frozen=True)
class Move:
    """``box`` of a tensor, out of ``piece``, from one rank of the exchange to another (or to itself)."""

    source: int
    target: int
    piece: Piece
    box: Box

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
    cut: bool = False
    last: bool = True


@dataclass
class Round:
    """What one collective carries."""

    sent: list[int]
    received: list[int]
    items: list[Item] = field(default_factory=list)

    def fits(self, item: Item, limit: int) -> bool:
        both = zip((*self.sent, *self.received), (*item.sent, *item.received), strict=True)
        return all(had + more <= limit for had, more in both)

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
    """Rounds of an exchange among ``at``, as seat number ``me`` takes part in them; at most ``limit`` elements in each."""

    def __init__(self, has: Mapping[str, list[Piece]], at: list[Seat], me: int, keeps: Keeps, limit: int):
        self._at, self._me, self._limit = at, me, limit
        self._holders: dict[tuple, list[int]] = {}
        self.rounds: list[Round] = []
        items = [item for name, some in has.items() for item in self._items(name, some, keeps)]
        for item in _in_step(items):
            if not self.rounds or not self.rounds[-1].fits(item, limit):
                self.rounds.append(Round([0] * len(at), [0] * len(at)))
            self.rounds[-1].add(item)
        self.sent = max((one.sent[me] for one in self.rounds), default=0)  # elements of this rank's largest round
        self.received = max((one.received[me] for one in self.rounds), default=0)
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
            some = [replace(move, box=_part(move.box, number, parts)) for move in moves]
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
                yield Move(self._holder(piece, target), target, piece, both)

    def _item(self, name: str, stage: int | None, wanted: Box, moves: list[Move]) -> Item:
        mine = [move for move in moves if self._me in (move.source, move.target)]
        item = Item(name, stage, wanted, mine, [0] * len(self._at), [0] * len(self._at))
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


class Exchange:
    """The stream of a weight sync: (name on disk, the box that this rank's engine ``keeps``), tensor by tensor.

    ``keeps`` must say the same on every rank of the model for each of them.  The plan is made once, parameters are read anew
    each time.
    """

    def __init__(self, model: torch.nn.Module, arch: Architecture, layout: Layout, keeps: Keeps):
        self._model, self._arch, self._layout = model, arch, layout
        self._group, at = seats(arch, layout)
        self._me = next(number for number, seat in enumerate(at) if seat.rank == layout.rank)
        self._seats = len(at)
        size = next(model.parameters()).element_size()
        has = pieces(arch, model.vocab_size, layout)
        self._kept: list[Tensor] = []
        self.plan = Plan(has, at, self._me, keeps, ROUND[layout.device.type] // size)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Collective over the model's ranks: all of them must exhaust it.

        A tensor is to be used up before the next is asked for: it may be a view of a parameter, or of what the next round
        overwrites.  A tied head comes only if the checkpoint stores one, as the embedding once more.  Memory beyond the model:
        what one round sends and receives, and tensors that arrive in several pieces, one of each stage at a time.
        """
        parameters = held_here(self._model, self._arch, self._layout)
        plan, (send, receive, together) = self.plan, self._memory(next(iter(parameters.values())))
        for one in plan.rounds:
            arrived = self._move(one, parameters, send, receive)
            for item in one.items:
                came = [
                    (move.box, move.piece.cut(parameters, move.box) if move.source == self._me else arrived[id(move)])
                    for move in item.moves if move.target == self._me
                ]  # fmt: skip
                put = plan.is_put_together(item)
                tensor = _together(item.wanted, came, together[plan.place[item.stage] :]) if put else came[0][1]
                if not item.last:
                    continue
                yield item.name, tensor
                if self._arch.tied and self._arch.head_on_disk and item.name.endswith("embed_tokens.weight"):
                    yield HEAD, tensor

    def _memory(self, like: Tensor) -> list[Tensor]:
        """To send from, to receive into, to put together in.  A GPU's is given back after each sync, since other phases need
        it; a host's is kept, since there new pages cost as much as copying into them."""
        made = self._kept or [like.new_empty(size) for size in (self.plan.sent, self.plan.received, self.plan.together)]
        if like.device.type == "cpu":
            self._kept = made
        return made

    def _move(self, one: Round, parameters: Mapping[str, Tensor], send: Tensor, receive: Tensor) -> dict[int, Tensor]:
        """One all-to-all.  What came, by the ``id`` of its move; it lies in ``receive``, by source and then in order."""
        if not any(one.sent):
            return {}
        moves = [move for item in one.items for move in item.moves if move.source != move.target]
        outward = [[move for move in moves if move.source == self._me and move.target == n] for n in range(self._seats)]
        inward = [[move for move in moves if move.target == self._me and move.source == n] for n in range(self._seats)]
        at = 0
        for move in (move for some in outward for move in some):
            box = move.piece.cut(parameters, move.box)
            send[at : at + move.size].view(box.shape).copy_(box)
            at += move.size
        counts = [[sum(move.size for move in some) for some in way] for way in (inward, outward)]
        dist.all_to_all_single(receive[: sum(counts[0])], send[: sum(counts[1])], *counts, group=self._group)
        found, at = {}, 0
        for move in (move for some in inward for move in some):
            found[id(move)] = receive[at : at + move.size].view([stop - start for start, stop in move.box])
            at += move.size
        return found


def _together(wanted: Box, came: list[tuple[Box, Tensor]], memory: Tensor) -> Tensor:
    """``memory`` as the box ``wanted``, with what ``came`` written into it."""
    found = memory[: volume(wanted)].view([stop - start for start, stop in wanted])
    for box, value in came:
        found[tuple(slice(a - first, z - first) for (a, z), (first, _) in zip(box, wanted, strict=True))].copy_(value)
    return found
