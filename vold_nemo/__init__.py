"""VOLD (arXiv 2510.23497): reasoning transfer from LLMs to vision-language models via on-policy distillation."""

import time

__version__ = "0.1.0"
STARTED = time.monotonic()  # the first line of ours that a process runs: wall-clock budgets count from here
