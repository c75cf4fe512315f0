"""The data of one step of stage 2: a ragged table of rollouts that every phase reads and adds a column to.

The R rollouts of a step stand group after group, K to a prompt (row r belongs to group r // K).  The tokens of their responses
stand one response after the other, N in all.  What is known of them is a column:

    of a token      ``TOKENS``     tensor [N]
    of a rollout    ``ROLLOUTS``   tensor [R]
    of a rollout    ``labels``     list   [R], whatever is no number: texts, names

``step["engine"]`` reads one, ``step["engine"] = values`` writes it whole; :meth:`Step.take` and :meth:`Step.put` do so for the
tokens of a micro-batch.  A new column is a line in one of the two tables below.  Torch and the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

NAN = float("nan")


class Predictions(Protocol):
    """What :meth:`Step.take` and :meth:`Step.put` ask of a micro-batch with n predictions; each is [n]."""

    @property
    def token(self) -> Tensor:
        """Where the predicted token stands in a token column, int64."""

    @property
    def row(self) -> Tensor:
        """Its rollout, int64."""

    @property
    def counts(self) -> Tensor:
        """Whether the prediction counts, bool."""


@dataclass(frozen=True)
class Column:
    """What a column's numbers are, and what stands where nobody has put one."""

    meaning: str
    dtype: torch.dtype = torch.float32
    empty: float = 0.0


TOKENS = {
    "engine": Column("log-prob of the sampled token, by the engine that sampled it"),
    "version": Column("version of the weights that sampled the token", torch.int32),
    "carries": Column("whether the token may carry a KL (select.may_carry_kl)", torch.bool),
    "old": Column("log-prob by the trainer, under the weights that the step began with", empty=NAN),
    "trainer": Column("the same where nothing asked for it beforehand: from the pass that trains", empty=NAN),
    "student_shared": Column("`old` over the ids that both tokenizers share; 0 where the token carries no KL"),
    "teacher": Column("log-prob by the teacher over the shared ids; 0 where the token carries no KL"),
    "kl": Column("value of the KL estimator; NaN: none was formed", empty=NAN),
    "kl_clamped": Column("whether that is a bound (objective.kl.clamp)", torch.bool),
    "drift": Column("KL of an FP8 teacher from the same in bf16, nats", empty=NAN),
    "same_top": Column("1 where both rank the same id first, else 0", empty=NAN),
}
ROLLOUTS = {
    "prompt": Column("index of the prompt in its data set", torch.int64),
    "sample": Column("0 .. K - 1", torch.int64),
    "truncated": Column("cut off for length", torch.bool),
    "scorer": Column("number of the teacher whose the prompt is", torch.int64),
    "reward": Column("the verifier's, 0 to 1", torch.float64),
    "advantage": Column("A_i, as the loss reads it", torch.float64),
    "kl_mask": Column("factor of the KL before normalisation: 1 - r in the paper", torch.float64),
    "policy_weight": Column("factor of each response token's policy loss, all normalisation inside", torch.float64),
    "kl_weight": Column("factor of each token's KL, all normalisation inside, beta not", torch.float64),
    "scored": Column("the teacher reads it", torch.bool),
    "trained": Column("it is in a micro-batch of the student's", torch.bool),
}


@dataclass
class Ragged:
    """Rows of different lengths, one after the other: row i is ``flat[offsets[i] : offsets[i + 1]]``."""

    flat: Tensor
    offsets: Tensor  # int64, one more than there are rows

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Ragged:
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        flat = torch.tensor([value for row in rows for value in row], dtype=dtype)
        return cls(flat, _offsets(lengths))

    @classmethod
    def of_tensors(cls, rows: Sequence[Tensor]) -> Ragged:
        return cls(torch.cat(list(rows)), _offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64)))

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        return self.flat[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __reduce__(self):  # as numpy's bytes: tensors are pickled by way of a file format, at a tenth of the speed
        return _ragged, (self.flat.cpu().numpy(), self.offsets.numpy())


def _put_unasked(column: Tensor, batch: Predictions, values: Tensor) -> None:
    """:meth:`Step.put` where the question which predictions count would stall a GPU: those that do not write behind the end."""
    longer = torch.cat([column, column.new_empty(1)])
    longer[torch.where(batch.counts, batch.token, len(column))] = values.to(column)
    column.copy_(longer[:-1])


def _ragged(flat, offsets) -> Ragged:
    return Ragged(torch.from_numpy(flat), torch.from_numpy(offsets))


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


@dataclass
class Step:
    """See the module."""

    prompts: Ragged  # int32 ids of each group's prompt, [B] rows
    responses: Ragged  # int32 ids of each response, its end of sequence too, [R] rows
    samples: int  # K
    columns: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, list] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], samples: int = 1,
        labels: Mapping[str, list] | None = None, **columns: Sequence,
    ) -> Step:  # fmt: skip
        """From lists.  ``responses``: K = ``samples`` for each prompt in turn.  A token column is a list for each response.

        Raises:
            ValueError: another number of responses or of values, or a prompt of no tokens: nothing would predict the first
                token of its responses.
        """
        if len(responses) != samples * len(prompts):
            raise ValueError(f"{len(responses)} responses to {len(prompts)} prompts; it must be {samples} each")
        if not all(map(len, prompts)):
            raise ValueError("a prompt has no tokens: nothing predicts the first token of its responses")
        step = cls(Ragged.of(prompts, torch.int32), Ragged.of(responses, torch.int32), samples, labels=dict(labels or {}))
        for name, values in columns.items():
            if name in TOKENS and [*map(len, values)] != step.responses.lengths.tolist():
                raise ValueError(f"column {name!r} has rows of other lengths than the responses")
            step[name] = Ragged.of(values, TOKENS[name].dtype).flat if name in TOKENS else list(values)
        if wrong := {name: len(values) for name, values in step.labels.items() if len(values) != len(step)}:
            raise ValueError(f"labels of {wrong} values, the step has {len(step)} rollouts")
        return step

    def __len__(self) -> int:
        return len(self.responses)

    # -- columns -------------------------------------------------------------------------------------------------------

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __setitem__(self, name: str, values: Tensor | Sequence | float) -> None:
        """Write a column whole; one number stands for all.  Raises ValueError for an unknown name or another length."""
        kind = TOKENS.get(name) or ROLLOUTS.get(name)
        if kind is None:
            raise ValueError(f"no column {name!r}; there are {' | '.join([*TOKENS, *ROLLOUTS])}")
        length = len(self.responses.flat) if name in TOKENS else len(self)
        values = torch.as_tensor(values, dtype=kind.dtype, device=self.device)
        if values.shape not in ((), (length,)):
            raise ValueError(f"column {name!r} has {tuple(values.shape)} values, the step {length}")
        self.columns[name] = values.expand(length).clone()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"columns": {name: values.cpu().numpy() for name, values in self.columns.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, columns={name: torch.from_numpy(values) for name, values in state["columns"].items()})

    def column(self, name: str) -> Tensor:
        """``step[name]``, made empty where nobody has written it yet."""
        if name not in self.columns:
            self[name] = (TOKENS.get(name) or ROLLOUTS[name]).empty
        return self.columns[name]

    @property
    def device(self) -> torch.device:
        return self.responses.flat.device

    def to(self, device: torch.device | str) -> Step:
        """The same with ids and columns on ``device``; offsets stay on the host, where rows are looked up."""
        return replace(
            self, prompts=replace(self.prompts, flat=self.prompts.flat.to(device)),
            responses=replace(self.responses, flat=self.responses.flat.to(device)),
            columns={name: values.to(device) for name, values in self.columns.items()},
        )  # fmt: skip

    # -- rows ----------------------------------------------------------------------------------------------------------

    @property
    def prompt_lengths(self) -> Tensor:
        """[R]"""
        return self.prompts.lengths.repeat_interleave(self.samples)

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and response, [R]."""
        return self.prompt_lengths + self.responses.lengths

    def groups(self) -> Iterator[range]:
        for start in range(0, len(self), self.samples):
            yield range(start, start + self.samples)

    def by_group(self, name: str) -> Tensor:
        """A column of rollouts as [B, K]."""
        return self[name].view(-1, self.samples)

    def sequence(self, row: int) -> Tensor:
        """Prompt and response of ``row``."""
        return torch.cat([self.prompts[row // self.samples], self.responses[row]])

    def of_each_token(self) -> Tensor:
        """The rollout that each token belongs to, int64 [N]."""
        return torch.arange(len(self), device=self.device).repeat_interleave(self.responses.lengths.to(self.device))

    def sum_by_rollout(self, values: Tensor) -> Tensor:
        """Σ over the tokens of each response, in float64: [N] -> [R]."""
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        return total.index_add_(0, self.of_each_token(), values.double())

    # -- micro-batches -------------------------------------------------------------------------------------------------

    def take(self, batch: Predictions, name: str) -> Tensor:
        """A column at the predictions of ``batch``, [n] in its order and on its device; 0 where nothing counts.

        Numbers come as float32, truth values as bool.
        """
        at = batch.token if name in TOKENS else batch.row
        values = self.columns[name].to(batch.token.device)
        values = values if values.dtype == torch.bool else values.float()
        if not len(values):  # a step without a single response token
            return torch.zeros_like(at, dtype=values.dtype)
        return torch.where(batch.counts, values[at], torch.zeros((), dtype=values.dtype, device=values.device))

    def put(self, batch: Predictions, name: str, values: Tensor) -> None:
        """Write a token column where ``batch`` predicts: [n] values in its order.  Tokens of other ranks stay as they are."""
        column = self.column(name)
        if column.is_cuda:
            return _put_unasked(column, batch, values.detach())
        at, values = batch.token[batch.counts], values.detach()[batch.counts]
        column[at.to(column.device)] = values.to(column)

    # -- ranks ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def assembled(parts: Sequence[tuple[Step, int]]) -> Step:
        """(step, group) by (step, group), in that order.  All steps must have the same K, columns and labels; on the host."""
        first, _ = parts[0]
        rows = [slice(group * step.samples, (group + 1) * step.samples) for step, group in parts]
        bounds = [(step.responses.offsets[part.start], step.responses.offsets[part.stop]) for (step, _), part in
                  zip(parts, rows, strict=True)]  # fmt: skip
        tokens = [slice(int(start), int(stop)) for start, stop in bounds]

        def cat(values: Sequence[Tensor], where: Sequence[slice]) -> Tensor:
            return torch.cat([one[part] for one, part in zip(values, where, strict=True)])

        def column(name: str) -> Tensor:
            return cat([step.columns[name] for step, _ in parts], tokens if name in TOKENS else rows)

        def label(name: str) -> list:
            return [value for (step, _), part in zip(parts, rows, strict=True) for value in step.labels[name][part]]

        lengths = cat([step.responses.lengths for step, _ in parts], rows)
        return Step(
            Ragged.of_tensors([step.prompts[group] for step, group in parts]),
            Ragged(cat([step.responses.flat for step, _ in parts], tokens), _offsets(lengths)), first.samples,
            {name: column(name) for name in first.columns}, {name: label(name) for name in first.labels},
        )  # fmt: skip

    def pick_groups(self, groups: Iterable[int]) -> Step:
        """Those groups, in that order."""
        return Step.assembled([(self, group) for group in groups])

    @staticmethod
    def interleaved(shares: Sequence[Step]) -> Step:
        """The whole step from shares whose groups were dealt out in turn (``groups[rank::world]``)."""
        count = sum(len(share.prompts) for share in shares)
        return Step.assembled([(shares[place % len(shares)], place // len(shares)) for place in range(count)])

    def gather(self, world: int) -> Step:
        """Inverse of dealing groups out in turn over ``world`` ranks: the whole step on every rank.

        One object all-gather over the world, of flat tensors.
        """
        if world == 1:
            return self
        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, self)
        return Step.interleaved(shares)

    def complete(self, names: Iterable[str], mine: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Columns that each rank of ``group`` (None: the world) knows in part become whole on all, in place.

        A rank brings the rollouts ``mine``, bool [R], and of their tokens those that are not NaN; what several bring must be
        the same.  One all-reduce of [2, N or R] a name.
        """
        for name in names:
            column, kind = self.column(name), TOKENS.get(name) or ROLLOUTS[name]
            there = (mine[self.of_each_token()] if name in TOKENS else mine) & ~column.isnan()
            both = torch.stack([torch.where(there, column, 0.0), there.to(column.dtype)])
            dist.all_reduce(both, group=group)
            self.columns[name] = torch.where(both[1] > 0, both[0] / both[1], kind.empty)
