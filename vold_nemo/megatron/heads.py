"""Where hidden states meet the LM head's shards: the one tensor-parallel collective around the objective.

The objective returns, on each tensor-parallel rank, the part of d(loss)/d(hidden) that comes from its own vocabulary rows.  The
backward of the functions below adds those parts up; nothing inside the objective does.
"""

from __future__ import annotations

from torch import Tensor


def meet_head(hidden: Tensor, layout) -> Tensor:
    """Hidden states as the LM head sees them, flattened: [S (/ T), B, H] -> [S * B, H] on every tensor-parallel rank.

    Without sequence parallelism: identity forward, all-reduce backward.  With it: all-gather along S forward,
    reduce-scatter backward.  Under ``no_grad`` only the gather is left.
    """
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
    )

    if layout.tensor > 1:
        if layout.sequence:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=layout.tensor_group
            )
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=layout.tensor_group)
    return hidden.reshape(-1, hidden.shape[-1])
