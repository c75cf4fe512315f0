"""From Megatron's parameters to the engines: every rank receives the part of each tensor that its engine keeps, and no more.

What moves in which round, between whom, is planned once (:mod:`vold_nemo.megatron.routes`).  A round is one all-to-all of what
was put together for it.  On gloo, where every pass over memory counts, long pieces are messages of their own beside it
(``names.LONG``): out of the parameter itself, and into the engine's own tensor where it lets the stream write there (``room``)
and the piece is one stretch of it.  And there the next round is under way while one is used up (``names.AHEAD``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.megatron.architecture import HEAD, Architecture
from vold_nemo.megatron.names import AHEAD, LONG, ROUND
from vold_nemo.megatron.parallel import Layout
from vold_nemo.megatron.routes import Box, Keeps, Move, Plan, Round, pieces, seats, volume
from vold_nemo.megatron.weights import held_here

Room = Callable[[str], Tensor | None]  # (name on disk): the engine's own tensor of it, to be written to; None: none


@dataclass
class UnderWay:
    """A round that was begun: what comes, by the ``id`` of its move (None: it comes to its place), and what to wait for."""

    round: Round
    coming: dict[int, Tensor | None]
    works: list[dist.Work]


class Exchange:
    """The stream of a weight sync: (name on disk, the box that this rank's engine ``keeps``), tensor by tensor.

    ``keeps`` must say the same on every rank of the model for each of them.  The plan is made once, parameters are read anew
    each time.
    """

    def __init__(
        self, model: torch.nn.Module, arch: Architecture, layout: Layout, keeps: Keeps, room: Room = lambda name: None
    ):
        self._model, self._arch, self._layout, self._room = model, arch, layout, room
        self._group, at = seats(arch, layout)
        self._me = next(number for number, seat in enumerate(at) if seat.rank == layout.rank)
        self._seats = len(at)
        device, size = layout.device.type, next(model.parameters()).element_size()
        has = pieces(arch, model.vocab_size, layout)
        self._kept: list[Tensor] = []
        self._ahead = AHEAD[device]
        self.plan = Plan(has, at, self._me, keeps, ROUND[device] // size, LONG[device] / size)
        self.beside = (1 + self._ahead) * (self.plan.sent + self.plan.received) + self.plan.together  # elements, at most

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Collective over the model's ranks: all of them must exhaust it.

        A tensor is to be used up before the next is asked for: it may be a view of a parameter, or of what the next round
        overwrites.  One that the engine has ``room`` for is the engine's own, already written to.  A tied head comes only if
        the checkpoint stores one, as the embedding once more.  Memory beyond the model: what a round sends and receives (two
        rounds, where the next one is under way), and tensors that arrive in several pieces, one of each stage at a time.
        """
        parameters = held_here(self._model, self._arch, self._layout)
        like = next(iter(parameters.values()))
        wanted = {item.name: item.wanted for one in self.plan.rounds for item in one.items}
        rooms = {name: room for name, box in wanted.items() if (room := self._room_for(name, box, like)) is not None}
        *buffers, together = self._memory(like)
        under_way: deque[UnderWay] = deque()
        for number, one in enumerate(self.plan.rounds):
            at = number % (1 + self._ahead) * 2
            under_way.append(self._begin(one, parameters, rooms, *buffers[at : at + 2]))
            if len(under_way) > self._ahead:
                yield from self._end(under_way.popleft(), parameters, rooms, together)
        while under_way:
            yield from self._end(under_way.popleft(), parameters, rooms, together)

    def _room_for(self, name: str, wanted: Box, like: Tensor) -> Tensor | None:
        """The engine's tensor, if what comes needs no cast."""
        room, shape = self._room(name), tuple(stop - start for start, stop in wanted)
        fits = room is not None and (room.shape, room.dtype, room.device) == (shape, like.dtype, like.device)
        return room if fits else None

    def _memory(self, like: Tensor) -> list[Tensor]:
        """To send from and to receive into, for each round that is under way, and to put together in.  A GPU's is given back
        after each sync, since other phases need it; a host's is kept, since there new pages cost as much as copying into
        them."""
        sizes = (self.plan.sent, self.plan.received) * (1 + self._ahead) + (self.plan.together,)
        made = self._kept or [like.new_empty(size) for size in sizes]
        if like.device.type == "cpu":
            self._kept = made
        return made

    def _begin(
        self, one: Round, parameters: Mapping[str, Tensor], rooms: Mapping[str, Tensor], send: Tensor, receive: Tensor
    ) -> UnderWay:
        """Messages are received and sent in the order of the plan; what is packed lies by rank and then in that order."""
        found, me = UnderWay(one, {}, []), self._me
        moves = [(move, item) for item in one.items for move in item.moves if move.source != move.target]
        at = sum(move.size for move, _ in moves if move.target == me and not move.alone)
        for move, item in (some for some in moves if some[0].alone):
            if move.source == me:
                box = move.piece.as_it_lies(move.piece.cut(parameters, move.box)).contiguous()
                found.works.append(dist.isend(box, group=self._group, group_dst=move.target))
                continue
            place = move.piece.as_it_lies(_within(rooms[item.name], item.wanted, move.box)) if item.name in rooms else None
            if place is None or not place.is_contiguous():
                place, at = receive[at : at + move.size], at + move.size
                found.coming[id(move)] = self._shaped(place, move)
            else:
                found.coming[id(move)] = None
            found.works.append(dist.irecv(place, group=self._group, group_src=move.source))
        if one.packed:
            found.works.append(self._packed([move for move, _ in moves if not move.alone], parameters, send, receive, found))
        return found

    def _packed(
        self, moves: list[Move], parameters: Mapping[str, Tensor], send: Tensor, receive: Tensor, found: UnderWay
    ) -> dist.Work:
        """Begins one all-to-all."""
        outward = [[move for move in moves if move.source == self._me and move.target == n] for n in range(self._seats)]
        inward = [[move for move in moves if move.target == self._me and move.source == n] for n in range(self._seats)]
        at = 0
        for move in (move for some in outward for move in some):
            box = move.piece.as_it_lies(move.piece.cut(parameters, move.box))
            send[at : at + move.size].view(box.shape).copy_(box)
            at += move.size
        counts = [[sum(move.size for move in some) for some in way] for way in (inward, outward)]
        size = sum(counts[0])
        work = dist.all_to_all_single(receive[:size], send[:at], *counts, group=self._group, async_op=True)
        at = 0
        for move in (move for some in inward for move in some):
            found.coming[id(move)] = self._shaped(receive[at : at + move.size], move)
            at += move.size
        return work

    @staticmethod
    def _shaped(flat: Tensor, move: Move) -> Tensor:
        shape = [stop - start for start, stop in move.box]
        if move.piece.place.packed and move.piece.place.transposed:
            shape[-2:] = shape[:-3:-1]
        return move.piece.as_it_lies(flat.view(shape))

    def _end(
        self, begun: UnderWay, parameters: Mapping[str, Tensor], rooms: Mapping[str, Tensor], together: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        for work in begun.works:
            work.wait()
        for item in begun.round.items:
            came = [
                (move.box, move.piece.cut(parameters, move.box) if move.source == self._me else begun.coming[id(move)])
                for move in item.moves if move.target == self._me
            ]  # fmt: skip
            if item.name in rooms:
                tensor = rooms[item.name]
            elif self.plan.is_put_together(item):
                tensor = together[self.plan.place[item.stage] :][: volume(item.wanted)]
                tensor = tensor.view([stop - start for start, stop in item.wanted])
            else:
                (_, tensor), came = came[0], []
            for box, value in came:
                if value is not None:
                    _copy(_within(tensor, item.wanted, box), value)
            if not item.last:
                continue
            yield item.name, tensor
            if self._arch.tied and self._arch.head_on_disk and item.name.endswith("embed_tokens.weight"):
                yield HEAD, tensor


def _within(tensor: Tensor, wanted: Box, box: Box) -> Tensor:
    """``box`` of a tensor that is the box ``wanted``."""
    return tensor[tuple(slice(a - first, z - first) for (a, z), (first, _) in zip(box, wanted, strict=True))]


def _copy(place: Tensor, value: Tensor) -> None:
    """One expert's matrix as a matrix: only then torch turns it in blocks, not element by element."""
    if value.dim() == 3 and len(value) == 1:
        place, value = place[0], value[0]
    place.copy_(value)
