"""Writes a checkpoint, or reads one and goes on, as ``test_versions.py`` has another megatron-core do it (or does it itself).

    OTHER_PYTHON -m torch.distributed.run --nproc-per-node N -m tests.checkpoint.other_version write|read SOURCE FOLDER LAYOUT
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.megatron import steps
from vold_nemo.checkpoint import loading, saving

LAYOUTS = {  # name: world, tensor, sequence, options
    "one": (1, 1, False, {}),
    "tp2": (2, 2, True, {}),
    "tp2_bf16": (2, 2, False, {"dtype": torch.bfloat16}),
    "distributed_bf16": (2, 1, False, {"distributed": True, "dtype": torch.bfloat16}),
}


def held(parts) -> dict[str, Tensor]:
    """Weights and the whole state of the optimizer on this rank, copied, in an order that is the model's."""
    model, _, _, optimizer, _ = parts
    found = steps.fingerprint(model)
    for number, part in enumerate(optimizer.chained_optimizers):
        for group in part.optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                name = f"optimizer {number} {group['wd_mult']} {place}"
                found[f"{name} value"] = parameter.detach().clone()
                for kind, value in part.optimizer.state[parameter].items():
                    found[f"{name} {kind}"] = torch.as_tensor(value).clone()
    return found


def write(source: str, folder: str, layout: str) -> dict[str, Any]:
    """Two steps and their checkpoint, then two more."""
    return _run(source, folder, layout, reads=False)


def read(source: str, folder: str, layout: str) -> dict[str, Any]:
    """The checkpoint, then two more steps."""
    return _run(source, folder, layout, reads=True)


def _run(source: str, folder: str, layout: str, *, reads: bool) -> dict[str, Any]:
    from vold_nemo.megatron import parallel

    _, tensor, sequence, options = LAYOUTS[layout]
    parts = steps.trainer(source, tensor, 1, sequence, **options)
    try:
        if reads:
            step, extra = loading.load(loading.find_latest(folder), steps.state(parts))
            assert (step, extra) == (2, {"seed": 5})
        else:
            steps.train(parts, 0, 2, 1)
            saving.write(folder, 2, steps.state(parts), extra={"seed": 5}, retention=loading.Retention(1))
        version, state = importlib.metadata.version("megatron-core"), held(parts)
        return {"version": version, "held": state, "went on": steps.train(parts, 2, 4, 1)}
    finally:
        parallel.destroy()


if __name__ == "__main__":
    import os

    verb, source, folder, layout = sys.argv[1:]
    told = {"write": write, "read": read}[verb](source, folder, layout)
    torch.save(told, Path(folder) / f"{verb}_{os.environ['RANK']}.pt")
