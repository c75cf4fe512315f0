"""Building a model draws random numbers and changes settings of the process: none of it leaves the ``with`` block."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import torch


@contextlib.contextmanager
def preserve_rng(device: torch.device):
    """Generators (torch on the CPU and ``device``, numpy, Python), torch's thread and dtype settings, progress bars.

    vLLM seeds every generator when it is built and, on a CPU, replaces ``torch.set_num_threads`` for the whole process.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    set_threads, threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if shown:
            logging.enable_progress_bar()
