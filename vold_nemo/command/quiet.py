"""What a person sees while a recipe runs: its own lines and progress bars, and the libraries' warnings that matter.

NeMo, Lightning and megatron-core announce on every start what they did not find and dump their whole configuration; on N
ranks that is N pages before the first step.  ``VOLD_VERBOSE=1`` lets everything through.
"""

from __future__ import annotations

import logging
import os
import warnings

from vold_nemo.megatron.versions import DEPRECATES

# megatron-core 0.19 calls GPTModel deprecated, at every construction and at length; nobody who runs a recipe can change that.
CHATTY = {"megatron": logging.WARNING, "lightning": logging.WARNING, "lightning.pytorch": logging.WARNING,
          "lightning.fabric": logging.WARNING, "nv_one_logger": logging.ERROR, DEPRECATES: logging.ERROR}  # fmt: skip
# Said at import time about packages whose absence recipes/plan.py reports where it matters.
EXPECTED = (
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    r"full scope is deprecated",
    r"torchao",
    r".*pynvml package is deprecated.*",
    r".*load_state_dict.* is deprecated",  # inside megatron-core's checkpoints
    r"Please use DTensor instead",
)


def quiet() -> None:
    """Raise the level of chatty loggers to WARNING and drop warnings that are expected.

    Call before megatron-core or NeMo is imported.
    """
    if os.environ.get("VOLD_VERBOSE") == "1":
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _raise_levels()
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
