"""Findings of recipes/doctor.py as one JSON document, to be pasted into a report of trouble.

Of the environment only what CUDA, NCCL and their like read goes in.  Values of what is called a token, key, secret or password,
those of ``cluster.launch.environment``, the part of an address before ``@``, the home folder, the user's name and the addresses
of interfaces are left out; the node's name stays, since it tells nodes apart.
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
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
ENVIRONMENT = "cluster.launch.environment"
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b[0-9a-fA-F]{1,4}(?::{1,2}[0-9a-fA-F]{1,4}){2,7}\b")
NETWORK = ("interfaces", "network")  # topics that hold addresses: elsewhere four numbers are a version


def document(found: list[Finding], arguments: list[str], code: int) -> str:
    """One line: what doctor found (``findings``), every installed package, and what it takes to tell machines apart."""
    git = output_of("git", "-C", str(places.root()), "rev-parse", "HEAD")
    environment = {name: value for name, value in os.environ.items() if READ.fullmatch(name) and not SECRET.search(name)}
    told = {
        "vold_nemo": __version__, "commit": git, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": [_argument(one) for one in arguments],
        "python": platform.python_version(), "platform": platform.platform(), "code": code,
        "findings": [_finding(line) for line in found],
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
    home, text = str(Path.home()), CREDENTIALS.sub("***@", value)
    text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if len(home) > 1 else text
    return re.sub(rf"(?<![\w.-]){re.escape(_user())}(?![\w.-])", "USER", text)


def _argument(argument: str) -> str:
    """``key=value`` without a value that may be secret."""
    key, equals, _ = argument.partition("=")
    return f"{key}=***" if equals and (SECRET.search(key) or key.lstrip("+").startswith(ENVIRONMENT)) else argument


def _finding(line: Finding) -> dict[str, str]:
    told = dataclasses.asdict(line)
    return {key: ADDRESS.sub("ADDRESS", text) for key, text in told.items()} if line.topic in NETWORK else told


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return str(os.getuid())
