"""Findings of recipes/doctor.py as one JSON document, to be pasted into a report of trouble.

No secret goes in: of the environment only what CUDA, NCCL and their like read, and neither the home folder nor the user's name.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

from vold_nemo import __version__
from vold_nemo.config import places
from vold_nemo.megatron import packages
from vold_nemo.megatron.diagnosis import Finding, output_of

READ = re.compile(r"(NCCL|CUDA|TORCH|PYTORCH|NVTE|UCX|OMP|VLLM)_\w+|SLURM_(JOB_NUM_NODES|NTASKS(_PER_NODE)?|GPUS_ON_NODE)")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def document(found: list[Finding], arguments: list[str], code: int) -> str:
    """One line: what doctor found (``findings``), every installed package, and what it takes to tell machines apart."""
    git = output_of("git", "-C", str(places.root()), "rev-parse", "HEAD")
    environment = {name: value for name, value in os.environ.items() if READ.fullmatch(name) and not SECRET.search(name)}
    told = {
        "vold_nemo": __version__, "commit": git, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "arguments": arguments,
        "python": platform.python_version(), "platform": platform.platform(), "code": code,
        "findings": [dataclasses.asdict(line) for line in found],
        "environment": dict(sorted(environment.items())),
        "prefix": sys.prefix, "versions": dict(sorted(packages.versions().items())),
    }  # fmt: skip
    return json.dumps(anonymous(told), ensure_ascii=False)


def anonymous(value):
    """``value`` with ~ for the home folder and USER for the user's name where it is a part of a path."""
    if isinstance(value, dict):
        return {name: anonymous(one) for name, one in value.items()}
    if isinstance(value, list):
        return [anonymous(one) for one in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    text = re.sub(rf"{re.escape(home)}(?=/|\b)", "~", value) if len(home) > 1 else value
    return re.sub(rf"(?<=/){re.escape(_user())}(?=/|$|[^\w.-])", "USER", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return str(os.getuid())
