"""megatron-core 0.16.1 (on Python 3.11) and 0.19.2 (on 3.12): what differs for this project, each difference once.

==========================  ===================================  =======================================================
                            0.16.1                               0.19.2
==========================  ===================================  =======================================================
Triton                      looked for                           imported, on a CPU, too: ``pyproject.toml``
the router's module         lacks a name where Transformer       has it: :func:`complete_router`
                            Engine is not installed
``GPTModel``                silent                               says that it is deprecated each time one is built
                                                                 (:data:`NOTICES`, as more of the kind); it is maintained,
                                                                 and the only decoder that both have
parts of a layer's spec     ``ModuleSpec``                       also ``functools.partial``, of a feed-forward part:
                                                                 ``layers.py`` walks both
groups of parameters in     known by multiples of rate and       by the rates themselves, too: :func:`recognise`
a saved optimizer           weight decay
what all ranks share of     in ``common.pt``                     among the shards; reads ``common.pt`` as well, which is
a checkpoint                                                     what ``checkpoint/sharded.py`` writes under both
weights of a layer are      in an order that the planner's       in another: ``memory.streamed`` is a bound
read                        bound meets
reading shards              planned by all ranks together,       by each rank alone, ``load(state, folder, strategy)``:
                            ``load(state, folder)``              ``rehearsal/written.py`` takes either
==========================  ===================================  =======================================================

Everything else that the project asks of megatron-core is the same in both, private methods that it overrides included:
``tests/megatron/test_interface.py`` reads that off the version that is installed, for what only a GPU runs, too.
"""

from __future__ import annotations

import importlib.metadata

TESTED = ("0.16.1", "0.19.2")
# By logger: how begins what it says of itself to those who build upon it, and nobody who runs a recipe can change.
NOTICES = {
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout not provided",
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",
}


def doubt() -> str | None:
    """What to say of the megatron-core that is installed; None of one that the tests have run on."""
    found = importlib.metadata.version("megatron-core")
    if found in TESTED:
        return None
    return f"megatron-core {found} is installed; what it does here was tested with {' and '.join(TESTED)} only"


def recognise(groups: list[dict], config) -> None:
    """Let an optimizer of ``config`` find its own among saved parameter ``groups``.

    0.19.2 goes by the first and last learning rate, too, and a run may go on with others than it began with.  Neither is used:
    the schedule sets ``lr``.
    """
    for group in groups:
        group |= {"max_lr": config.lr, "min_lr": config.min_lr}


def complete_router() -> None:
    """Give megatron-core's router the name that it asks for."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
