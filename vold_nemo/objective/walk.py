"""The walk over token chunks: a chunk meets the LM heads, yields its numbers, takes its gradient, and is gone.

Two [c, v] buffers (student, teacher) are all that ever exists of the logits.  Where every token's coefficient is known when
its chunk is there, the gradient is formed in the same pass, inside ``forward``; ``backward`` only hands it over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vold_nemo.objective.divergence import Divergence
from vold_nemo.objective.head import add_head_gradient, hidden_gradient, operand, project, working_type
from vold_nemo.objective.softmax import Summary, row_blocks, summarise
from vold_nemo.objective.vocabulary import VocabularyShard


@dataclass
class TeacherStates:
    """The frozen side: hidden states [n, Ht] in the student's token order, LM head shard [v, Ht]."""

    hidden: Tensor
    head: Tensor


@dataclass
class Chunk:
    rows: Tensor  # [c], positions in the flat batch
    summary: Summary
    shard: VocabularyShard


class Walk:
    """Chunks of chosen tokens through the heads, and their gradients back.

    Args:
        hidden: [n, H]; only chosen rows are ever read, so what padding holds, NaN included, reaches nothing.
        head: [v, H].
        kernels: who walks over a chunk's logits, ``torch`` or ``triton`` (`kernels.py`).
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        shard: VocabularyShard,
        *,
        temperature: float,
        chunk_tokens: int,
        kernels: str = "torch",
    ):
        _check_shapes(hidden, head, targets, shard, temperature, chunk_tokens)
        self.hidden, self.head, self.targets, self.shard = hidden, head, targets, shard
        self.temperature, self.chunk_tokens, self.kernels = temperature, chunk_tokens, kernels
        self.dtype = working_type(hidden)
        self._buffers: list[Tensor] = []
        self.hidden_gradient: Tensor | None = None
        self._head_gradient: Tensor | None = None
        self._given, self._first = False, True

    def form_gradients(self, of_hidden: bool, of_head: bool, into: Tensor | None = None) -> Walk:
        """Form ∂/∂hidden, ∂/∂head in :meth:`backward`; ∂/∂head is added to ``into`` [v, H], of the working type, in place."""
        if of_hidden:
            self.hidden_gradient = torch.zeros_like(self.hidden)
        if of_head and into is None:
            self._head_gradient = self.head.new_empty(self.head.shape, dtype=self.dtype)
        elif of_head and into is not None:
            if into.shape != self.head.shape or into.dtype != self.dtype:
                found = f"{into.dtype} {tuple(into.shape)}"
                raise ValueError(f"head_gradient is {found}; it must be {self.dtype} {tuple(self.head.shape)}")
            self._head_gradient, self._given, self._first = into, True, False
        return self

    def chunks(
        self, rows: Tensor, teacher: TeacherStates | None = None, divergence: str | None = None,
        teacher_temperature: float = 1.0,
    ) -> Iterator[Chunk]:  # fmt: skip
        """Summaries of ``rows`` [m], chunk by chunk; each is valid until the next is asked for.

        With a teacher the ids are normalised over the shared set too, otherwise over the sampleable ones alone.  Targets must
        be sampleable.
        """
        shard = self.shard.over_sampleable if teacher is None else self.shard
        for part in _even(rows, self.chunk_tokens):
            logits = project(self.hidden[part], self.head, self._buffer(0, len(part)))
            other = None
            if teacher is not None:
                other = project(teacher.hidden[part], teacher.head, self._buffer(1, len(part)))
            summary = summarise(
                logits, other, self.targets[part], shard,
                temperature=self.temperature, teacher_temperature=teacher_temperature,
                divergence=divergence if teacher else None, kernels=self.kernels,
            )  # fmt: skip
            yield Chunk(part, summary, shard)

    def backward(
        self, chunk: Chunk, slope: Tensor, divergence: Divergence | None = None, weight: Tensor | None = None
    ) -> None:
        """Add the gradient of ``slope``·logprob + ``weight``·KL, [c] each, to both gradients (the chunk is used up).

        On shared ids ∂/∂z_j = slope (δ_jy - π_j) + weight (sampled (δ_jy - p_j) + exact_j), with π_j = shared_mass·p_j;
        on one-sided ids slope (δ_jy - π_j); on padding 0.
        """
        if self.hidden_gradient is None and self._head_gradient is None:
            return
        summary = chunk.summary
        slope = slope / self.temperature  # logits are hidden · head / temperature
        sampled, exact = torch.zeros_like(slope), None
        if divergence is not None and weight is not None:
            weight = (weight / self.temperature).masked_fill(~divergence.active, 0.0)
            if divergence.sampled is not None:
                sampled = weight * divergence.sampled
            else:
                exact = weight.masked_fill(divergence.clamped, 0.0)
        gradient = self._over_vocabulary(summary, -(slope * summary.shared_mass + sampled), divergence, exact)
        if len(chunk.shard.one_sided):
            gradient.index_copy_(1, chunk.shard.one_sided, summary.one_sided.exp().mul_(-slope[:, None]))
        index, here = chunk.shard.locate(self.targets[chunk.rows])
        gradient.scatter_add_(1, index[:, None], ((slope + sampled) * here)[:, None])

        gradient = operand(gradient, self.head)
        if self.hidden_gradient is not None:
            part = hidden_gradient(gradient, self.head)
            self.hidden_gradient.index_copy_(0, chunk.rows, part.to(self.hidden.dtype))
        if self._head_gradient is not None:
            add_head_gradient(self._head_gradient, gradient, self.hidden[chunk.rows], self._first)
            self._first = False

    def _over_vocabulary(self, summary: Summary, column: Tensor, divergence: Divergence | None, exact: Tensor | None) -> Tensor:
        """``column``·p + ``exact``·∂KL, [c, v], written over the logits; ``exact`` None = the KL has no such part."""
        student = summary.student
        if self.kernels == "triton" and (exact is None or divergence is None or divergence.estimator in ("reverse", "forward")):
            from vold_nemo.objective import kernels

            return kernels.gradient(student, summary.teacher, column, exact, None if exact is None else divergence)
        column = column[:, None]
        if exact is None or divergence is None:
            for rows in row_blocks(student.logits):
                student.logits[rows].sub_(student.norm[rows, None]).exp_().mul_(column[rows])
            return student.logits
        student, teacher = summary.both
        for rows in row_blocks(teacher.logits):
            p = student.logprobs(rows).exp_()
            divergence.write(student, teacher, rows, p, exact[rows]).addcmul_(p, column[rows])
        return teacher.logits

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """∂/∂hidden (this rank's partial sum) and ∂/∂head (whole; None where it went elsewhere), in their inputs' types."""
        self._buffers = []
        if self._head_gradient is None or self._given:
            return self.hidden_gradient, None
        if self._first:
            self._head_gradient.zero_()
        return self.hidden_gradient, self._head_gradient.to(self.head.dtype)

    def _buffer(self, which: int, rows: int) -> Tensor:
        while len(self._buffers) <= which:
            size = min(self.chunk_tokens, len(self.targets))
            self._buffers.append(self.hidden.new_empty(size, self.shard.size, dtype=self.dtype))
        return self._buffers[which][:rows]


def refuse_unsampleable(targets: Tensor, which: Tensor) -> None:
    """Raise ValueError with the first of those that cannot be sampled, of which there is one."""
    at = int(which.nonzero()[0])
    raise ValueError(f"target id {int(targets[at])} of token {at} is not among the sampleable ids")


def _even(rows: Tensor, most: int) -> tuple[Tensor, ...]:
    """As few parts as ``most`` allows, of one size: a short last chunk would pay for reading the heads all the same."""
    count = -(-len(rows) // most)
    return rows.split(-(-len(rows) // count)) if count else ()


def _check_shapes(hidden, head, targets, shard, temperature, chunk_tokens) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and head {tuple(head.shape)} must be [n, H] and [v, H]")
    if head.shape[0] != shard.size:
        raise ValueError(f"head has {head.shape[0]} rows, the vocabulary shard {shard.size}")
    if targets.shape != (hidden.shape[0],):
        raise ValueError(f"targets {tuple(targets.shape)} must be [{hidden.shape[0]}], one per hidden state")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature!r}; allowed: a positive number")
    if chunk_tokens < 1:
        raise ValueError(f"objective.chunk_tokens = {chunk_tokens!r}; allowed: 1 or more")


_SCALED = "∂head was added to head_gradient with the loss: the loss cannot be scaled afterwards (put factors into the weights)"


class _FormedInForward(torch.autograd.Function):
    """Runs a function that returns (loss, ∂hidden, ∂head) in ``forward``; ``backward`` scales and gives them away.

    They are given away, not kept: autograd can then move ∂head into ``.grad`` instead of copying it.  A second backward
    through the same graph is therefore an error, as is a double backward.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, run: Callable[[bool, bool], tuple]):
        loss, *ctx.formed = run(ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        ctx.added = ctx.needs_input_grad[1] and ctx.formed[1] is None  # ∂head is already where it belongs
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):
        if ctx.formed is None:
            raise RuntimeError("the gradient of this loss was already handed over; call the loss again")
        formed, ctx.formed = ctx.formed, None
        if ctx.added and scale.is_cuda:
            torch._assert_async(scale == 1.0, _SCALED)
        elif ctx.added and float(scale) != 1.0:
            raise RuntimeError(_SCALED)
        if not scale.is_cuda and float(scale) == 1.0:  # a whole pass over ∂head saved; on a GPU the question costs more
            return *formed, None
        return (*(None if g is None else g.mul_(scale.to(g.dtype)) for g in formed), None)


def formed_in_forward(hidden: Tensor, head: Tensor, run: Callable[[bool, bool], tuple]) -> Tensor:
    """``run(need_hidden, need_head) -> (loss, ∂hidden | None, ∂head | None)`` as an autograd node on hidden and head."""
    if not torch.is_grad_enabled() or not (hidden.requires_grad or head.requires_grad):
        return run(False, False)[0]
    with torch.autocast(hidden.device.type, enabled=False):
        return _FormedInForward.apply(hidden, head, run)
