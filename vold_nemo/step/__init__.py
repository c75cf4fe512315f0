"""A step of stage 2 as a thing: a ragged table of rollouts, and pure functions of its columns.

`table.py` holds the data; `select.py` says which rollouts carry a signal, `plan.py` where each is scored and trained on,
`batches.py` lays out what the models read and what the loss asks for, `metrics.py` and `records.py` say what came of it.
Torch, the standard library and `vold_nemo.objective` alone: docs/own_trainer.py uses both with nothing else of this project.
"""


from vold_nemo.step.batches import MicroBatch, batch_of, collate, pack, token_batch
from vold_nemo.step.options import StepOptions
from vold_nemo.step.plan import PlannedBatch, StepPlan, make_plan
from vold_nemo.step.select import select, silent_groups
from vold_nemo.step.table import Step

__all__ = [
    "MicroBatch",
    "PlannedBatch",
    "Step",
    "StepOptions",
    "StepPlan",
    "batch_of",
    "collate",
    "make_plan",
    "pack",
    "select",
    "silent_groups",
    "token_batch",
]
