"""What megatron-core and torch want to find in the environment of a training process on GPUs, set before either is imported.

Whoever has set a variable has decided.  Of NCCL's own none is set: which ones help hangs on the site (``launch.environment``).
No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from vold_nemo.config.installed import version
from vold_nemo.config.schema import Config

CONNECTIONS, GLOO_LAZY = "CUDA_DEVICE_MAX_CONNECTIONS", "TORCH_GLOO_LAZY_INIT"
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # the name that torch looks for first, and the only one that megatron-core knows
_ALLOCATOR_TOO = (ALLOCATOR, "PYTORCH_ALLOC_CONF")
SEGMENTS = "expandable_segments"
TRAINING = ("sft", "vold")
_BLACKWELL = 10  # from this compute capability on, streams have queues of their own
_FIRST_VLLM = (0, 32)  # known to put its own memory outside of expandable segments; older ones refuse to start beside them


@dataclass(frozen=True)
class Variable:
    """``value`` None: it is left alone, for ``why``."""

    name: str
    value: str | None
    why: str


def wanted(config: Config, verb: str, capability: float | None) -> Iterator[Variable]:
    """For ``recipes/<verb>.py`` on GPUs of ``capability`` (None = not known); nothing for a verb that does not train."""
    if verb not in TRAINING:
        return
    yield _connections(config, capability)
    yield Variable(ALLOCATOR, *_allocator(config, verb))
    yield Variable(GLOO_LAZY, "1", "a gloo group connects the ranks that talk, when they first do, and not all with each other")


def _connections(config: Config, capability: float | None) -> Variable:
    """megatron-core's tensor and context parallelism launch a collective and, behind it, the product that is to hide it: in one
    hardware queue they begin in this order (``tensor_parallel/layers.py``)."""
    parallel = config.parallel
    if parallel.tensor == parallel.context == 1:
        return Variable(CONNECTIONS, None, "without tensor or context parallelism nothing hangs on it")
    if capability is not None and capability >= _BLACKWELL:
        return Variable(CONNECTIONS, None, "Blackwell keeps the order without it")
    return Variable(CONNECTIONS, "1", "collectives of tensor and context parallelism begin before the products that hide them")


def _allocator(config: Config, verb: str) -> tuple[str | None, str]:
    """vLLM switches expandable segments off around its own pools, which sleep; CUDA graphs of its all-reduce, which several
    ranks of an engine share by CUDA's IPC, it does not: the engine ends with "invalid argument" (vllm-project/vllm #42609)."""
    if verb == "vold" and config.rollout.engine == "vllm":
        if config.rollout.vllm.tensor_parallel > 1:
            return None, "ranks of a vLLM engine cannot share memory of expandable segments"
        here = version("vllm")
        if here is not None and _numbers(here) < _FIRST_VLLM:
            return None, f"vLLM {here} refuses expandable segments"
    return f"{SEGMENTS}:True", "lengths differ from step to step: segments that grow do not fragment"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def said(variable: Variable, environment: Mapping[str, str]) -> str | None:
    """What ``environment`` says of ``variable``, under whichever of its names."""
    names = _ALLOCATOR_TOO if variable.name == ALLOCATOR else (variable.name,)
    return next((environment[name] for name in names if environment.get(name)), None)


def set_in(environment: MutableMapping[str, str], variables: Iterator[Variable]) -> None:
    """Set what nobody has set."""
    for one in variables:
        if one.value is not None and said(one, environment) is None:
            environment[one.name] = one.value


def contradicts(variable: Variable, own: str) -> str | None:
    """What follows from ``own``, a value that somebody has set, where that is not what is wanted."""
    if variable.name == ALLOCATOR:
        on = f"{SEGMENTS}:true" in own.lower().replace(" ", "")
        if on and variable.value is None:
            return f"{variable.why}: unset it for this run"
        return None if on or variable.value is None else f"without {variable.value} memory fragments: {variable.why}"
    return None if variable.value in (None, own) else f"{variable.value} is wanted: {variable.why}"
