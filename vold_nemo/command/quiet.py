"""What a person sees while a recipe runs: its own lines and progress bars, and the libraries' warnings that matter.

NeMo, Lightning and megatron-core announce on every start what they did not find and dump their whole configuration; on N
ranks that is N pages before the first step.  ``VOLD_VERBOSE=1`` lets everything through.
"""

from __future__ import annotations

import logging
import os
import warnings

from vold_nemo.megatron.versions import NOTICES

CHATTY = {"megatron": logging.WARNING, "lightning": logging.WARNING, "lightning.pytorch": logging.WARNING,
          "lightning.fabric": logging.WARNING, "nv_one_logger": logging.ERROR}  # fmt: skip
# Said at import time about packages whose absence recipes/plan.py reports where it matters.
EXPECTED = (
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    r"full scope is deprecated",
    r"torchao",
    r".*pynvml package is deprecated.*",
    r".*load_state_dict.* is deprecated",  # inside megatron-core's checkpoints
    r"Please use DTensor instead",
    r"MimoModelConfig is experimental",
    r"The argument order of load has been changed",  # megatron-core 0.19's call
    r"torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to load",  # it is: each rank alone
)


def quiet() -> None:
    """Raise the level of chatty loggers to WARNING and drop warnings that are expected.

    Call before megatron-core or NeMo is imported.
    """
    if os.environ.get("VOLD_VERBOSE") == "1":
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _raise_levels()
    drop_notices()
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def quiet_nemo() -> None:
    """NeMo and Lightning set the levels of their own loggers when they are imported: call afterwards."""
    if os.environ.get("VOLD_VERBOSE") == "1":
        return
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    _raise_levels()


def _raise_levels() -> None:
    for name, level in CHATTY.items():
        logging.getLogger(name).setLevel(level)


def drop_notices() -> None:
    """megatron-core 0.19 calls deprecated what both versions have, and says so at each start; whatever else the same loggers
    say passes."""
    for name, beginning in NOTICES.items():
        logging.getLogger(name).addFilter(lambda record, said=beginning: not record.getMessage().startswith(said))
