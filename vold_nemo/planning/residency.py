"""Who holds the device in which phase of stage 2: one table, which the planner reckons with and a run brings about.

==========  ===============  =========  =========  ==============  =====================================================
phase       student weights  gradients  optimizer  teacher         engine: weights and cache
==========  ===============  =========  =========  ==============  =====================================================
generate    here                                                   here (and while it validates)
logprobs    here
teacher     here                                   here
train       here             here       here       (its LM head)
sync        here                                                   here
checkpoint  here                        here
==========  ===============  =========  =========  ==============  =====================================================

An empty place is one that may be elsewhere: gone if its key asks for it, else still here.  A teacher with ``offload`` comes and
goes by itself (``models/teacher.py``).
"""

from __future__ import annotations

from vold_nemo.config import Config

NEEDS: dict[str, frozenset[str]] = {
    "generate": frozenset({"engine"}),
    "logprobs": frozenset(),
    "teacher": frozenset({"teacher"}),
    "train": frozenset({"gradients", "optimizer"}),
    "sync": frozenset({"engine"}),
    "validate": frozenset({"engine"}),
    "checkpoint": frozenset({"optimizer"}),
}


def leaving(config: Config) -> frozenset[str]:
    """Holders that leave the device in every phase that does not need them, as the keys ask."""
    asked = {
        "gradients": config.vold.offload.gradients, "optimizer": config.vold.offload.optimizer, "engine": config.rollout.sleep,
    }  # fmt: skip
    return frozenset(name for name, wanted in asked.items() if wanted)


def here(config: Config, phase: str, sizes: dict[str, int]) -> dict[str, int]:
    """Of ``sizes``, bytes by holder, what is on the device in ``phase``."""
    gone = leaving(config) - NEEDS[phase]
    return {name: size for name, size in sizes.items() if name not in gone}
