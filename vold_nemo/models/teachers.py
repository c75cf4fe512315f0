"""The teachers of stage 2: nobody, one, or several, where each rollout is scored by the one that its prompt names.

A micro-batch is of one teacher (the step plan sees to it), so everything behind it stays as with one: hidden states, LM head
and the walk over the vocabulary are that teacher's.  Teachers score one after the other; with ``offload`` only the one that
scores, and the LM heads, are on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from vold_nemo.config import Config
from vold_nemo.megatron import weights
from vold_nemo.models.teacher import Teacher
from vold_nemo.objective import TeacherStates
from vold_nemo.step import MicroBatch


class Teachers:
    """``members[n]`` is teacher number n: ``config.teacher`` (0), then ``config.teachers`` in their order."""

    def __init__(self, *members: Teacher):
        self.members = members

    def __bool__(self) -> bool:
        return bool(self.members)

    def hidden_states(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """As :meth:`Teacher.hidden_states`, of each scored micro-batch by its own teacher; one forward-only pass a teacher."""
        found: list[Tensor | None] = [None] * len(batches)
        for number, member in enumerate(self.members):
            own = [replace(batch, scored=batch.scored and batch.teacher == number) for batch in batches]
            for index, hidden in enumerate(member.hidden_states(own)):
                found[index] = hidden if own[index].scored else found[index]
        return found

    def states(self, hidden: Tensor, batch: MicroBatch) -> TeacherStates:
        """What the objective reads of ``hidden``, the states of ``batch``, beside its teacher's LM head."""
        member = self.members[batch.teacher]
        return TeacherStates(member.selected(hidden, batch), member.head)

    def rest(self) -> None:
        """Off the device, where ``teacher.offload`` asks for it, until the next hidden states."""
        for member in self.members:
            member.rest()

    def moved(self) -> dict[str, float]:
        """Bytes moved between host and device, and the seconds that took, since the last call; on this rank."""
        each = [member.moved() for member in self.members if member.resting]
        return {key: sum(said[key] for said in each) for key in ("bytes", "seconds")} if each else {}

    def device_bytes(self) -> int:
        return sum(member.device_bytes() for member in self.members)

    def memory_bytes(self) -> dict[str, int]:
        each = [member.memory_bytes() for member in self.members]
        return {key: sum(said[key] for said in each) for key in ("weights", "gradients")}


def assemble(
    config: Config, layout, *, padded_vocabulary: int, source: Callable[[str], weights.Source] = weights.Files
) -> Teachers:
    """Whom stage 2 distils from: nobody without a KL.  ``source`` opens the weights behind a teacher's path."""
    named = [config.teacher, *config.teachers.values()] if config.objective.kl.enabled else []
    return Teachers(*(
        Teacher(one, layout, padded_vocabulary=padded_vocabulary, student_precision=config.precision, source=source)
        for one in named
    ))  # fmt: skip
