"""Pipeline exchanges of micro-batches of different lengths, without asking each other for shapes.

megatron-core's stages send a shape before every tensor, wait for the device and read the numbers back.  Here all stages hold
the same micro-batches, so each knows what comes: the n-th tensor from the stage before is the n-th micro-batch's output, and
the n-th from the stage behind its gradient.  Nor does a stage wait for the device behind an exchange (``batch_p2p_sync``,
:mod:`build`): the requests' own waits put the streams in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

Shape = tuple[int, int, int]


def stage_shape(ids, layout, hidden: int) -> Shape:
    """[S (/ T), B, H] of what a stage hands on for ids [B, S]; a slice of S under sequence parallelism."""
    rows, length = ids.shape
    return length // (layout.tensor if layout.sequence else 1), rows, hidden


def exchange(config, micro_batches: Sequence, layout) -> dict[str, Any]:
    """Arguments of megatron-core's schedule for this layout; none without a pipeline.

    ``micro_batches`` have ``ids`` [B, S], and are the same on every stage.
    """
    if layout.pipeline == 1:
        return {}
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    groups = ProcessGroupCollection()
    groups.tp, groups.cp, groups.pp = layout.tensor_group, layout.context_group, layout.pipeline_group
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=False)
    shapes = [stage_shape(batch.ids, layout, config.hidden_size) for batch in micro_batches]
    forward, backward = (
        [shapes[index] for index in order(config, len(shapes), layout, around=end)]
        for end in (layout.is_first_stage, layout.is_last_stage)
    )
    return {
        "p2p_communicator": _communicator()(layout.pipeline_group, config, forward, backward), "pg_collection": groups,
    }  # fmt: skip


def order(config, count: int, layout, *, around: bool) -> list[int]:
    """Which of ``count`` micro-batches each received tensor is of, in the order they come; forward and backward alike.

    The interleaved schedule takes groups of micro-batches through one chunk after the other.  ``around``: what is received
    comes from the other end of the pipeline (forward at its first stage, backward at its last), which sends nothing on of its
    last chunk.
    """
    if layout.virtual == 1:
        return list(range(count))
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    table = get_schedule_table(count, layout.virtual, config.microbatch_group_size_per_vp_stage)
    return [index for index, chunk in table if not around or chunk < layout.virtual - 1]


@cache
def _communicator() -> type:
    """Made late: importing megatron-core takes seconds."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    class KnownShapes(P2PCommunicator):
        """One pass whose received tensors have these shapes: outputs of the stage before, gradients from the one behind."""

        def __init__(self, group, config, forward: Sequence[Shape], backward: Sequence[Shape]):
            super().__init__(group, config)
            self._forward, self._backward = iter(forward), iter(backward)

        def _communicate_shapes(self, tensor_send_next, tensor_send_prev, recv_prev: bool, recv_next: bool):
            nothing = [0, 0, 0]
            return next(self._forward) if recv_prev else nothing, next(self._backward) if recv_next else nothing

    return KnownShapes
