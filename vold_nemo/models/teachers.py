"""Several teachers: each rollout is scored by the one that its prompt names.

A micro-batch is of one teacher (the step plan sees to it), so everything behind it stays as with one: hidden states, LM head
and the walk over the vocabulary are that teacher's.  Teachers score one after the other; with ``offload`` only the one that
scores, and the LM heads, are on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from vold_nemo.config import Config
from vold_nemo.data.micro_batch import MicroBatch
from vold_nemo.models.teacher import Teacher


class Teachers:
    """``config.teacher`` (number 0) and ``config.teachers`` in their order, with the interface of one :class:`Teacher`."""

    def __init__(self, config: Config, layout, *, padded_vocabulary: int):
        self.names = ("teacher", *config.teachers)
        self.members = tuple(
            Teacher(member, layout, padded_vocabulary=padded_vocabulary, student_precision=config.precision)
            for member in (config.teacher, *config.teachers.values())
        )

    def of(self, batch: MicroBatch) -> Teacher:
        return self.members[batch.teacher]

    def hidden_states(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """As :meth:`Teacher.hidden_states`, of each micro-batch by its own teacher; one forward-only schedule a teacher."""
        found: list[Tensor | None] = [None] * len(batches)
        for number, member in enumerate(self.members):
            own = [replace(batch, scored=batch.scored and batch.teacher == number) for batch in batches]
            for index, hidden in enumerate(member.hidden_states(own)):
                found[index] = hidden if own[index].scored else found[index]
        return found

    def rest(self) -> None:
        for member in self.members:
            member.rest()

    def moved(self) -> dict[str, float]:
        each = [member.moved() for member in self.members if member.resting]
        return {key: sum(said[key] for said in each) for key in ("bytes", "seconds")} if each else {}

    def memory_bytes(self) -> dict[str, int]:
        each = [member.memory_bytes() for member in self.members]
        return {key: sum(said[key] for said in each) for key in each[0]}


def members(teacher: Teacher | Teachers | None) -> tuple[Teacher, ...]:
    """Each teacher of ``teacher``, by number."""
    if teacher is None:
        return ()
    return teacher.members if isinstance(teacher, Teachers) else (teacher,)


def assemble(config: Config, layout, *, padded_vocabulary: int) -> Teacher | Teachers | None:
    """What stage 2 distils from: nobody without a KL, one teacher, or several."""
    if not config.objective.kl.enabled:
        return None
    if config.teachers:
        return Teachers(config, layout, padded_vocabulary=padded_vocabulary)
    return Teacher(config.teacher, layout, padded_vocabulary=padded_vocabulary, student_precision=config.precision)
