"""What recipes/doctor.py says of a node's limits and networks: what ranks will check, raise or lack there."""

from __future__ import annotations

import os

from vold_nemo.config import Config, environment, limits, network
from vold_nemo.megatron.diagnosis import BAD, GOOD, NOTE, Finding


def system_limits(world: int, on_node: int) -> list[Finding]:
    """Limits of this process against what ``on_node`` ranks of ``world`` need; open files have a probe of their own."""
    found, pins = [], bool(network.adapters())
    for limit in limits.limits(world, on_node)[1:]:
        needed = limit.what != limits.MEMORY_LOCK or pins
        grade = GOOD if not limit.short else BAD if needed else NOTE
        follows = f"{limit.follows}: ask for more ({limit.ask})" if limit.short else ""
        found.append(Finding(grade, limit.topic, str(limit).partition(": ")[2], follows))
    tasks = limits.tasks_of_group()
    if tasks is not None:
        need = limits.THREADS_OF_RANK * on_node
        grade, mend = (GOOD, "") if tasks >= need else (BAD, "threads cannot start: raise the container's pids limit")
        found.append(Finding(grade, "tasks", f"{tasks:,} allowed by the control group, {need:,} needed", mend))
    dumps = limits.core_dumps()
    return [*found, Finding(NOTE, "core dumps", "are written", dumps)] if dumps else found


def variables(config: Config, verb: str, capability: float | None) -> list[Finding]:
    """What a run of ``verb`` on GPUs finds in its environment, and who put it there."""
    found = []
    for one in environment.wanted(config, verb, capability):
        own = environment.said(one, os.environ)
        follows = environment.contradicts(one, own) if own is not None else None
        if own is not None:
            what = f"{one.name}={own}, set here"
        else:
            what = f"{one.name} is not set" if one.value is None else f"{one.name}={one.value}, which {verb} sets for itself"
        found.append(Finding(NOTE if follows else GOOD, "variables", f"{what} ({one.why})", follows or ""))
    return found


def networks() -> list[Finding]:
    """Interfaces and adapters of this node, and what the network variables set here would meet."""
    from vold_nemo.config.launcher import launch, nodes

    usable = [str(each) for each in network.interfaces() if each.usable() and not each.loops]
    found = [Finding(GOOD if usable else NOTE, "interfaces", ", ".join(usable) or "none but the loopback")]
    ports = [f"{name}:{port} {state}" for name, known in network.adapters().items() for port, state in known.items()]
    found.append(Finding(GOOD if ports else NOTE, "adapters", ", ".join(ports) or "none (InfiniBand, RoCE)"))
    wrong = list(network.findings(os.environ)) or list(network.here(os.environ, launch(), nodes()))
    said = ((f"{error.key} = {error.value!r}: here {error.allowed}", error.mend) for error in wrong)
    return found + [Finding(BAD, "network", what, mend) for what, mend in said]
