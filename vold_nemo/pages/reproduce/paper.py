"""What the paper prints (arXiv 2510.23497, 3B student): the numbers that our own are drawn beside.

Percent, as printed.  A figure that the paper draws without printing its numbers has only its claim here.
"""

from __future__ import annotations

SETS = ("mmmu_pro_vision", "mmstar", "mathvision", "mathvista", "mathverse", "dynamath", "wemath", "logicvista")
THREE = ("mmstar", "mathvision", "logicvista")


def _row(sets: tuple[str, ...], *values: float) -> dict[str, float]:
    return dict(zip(sets, values, strict=True))


TABLE1 = {
    "base": _row(SETS, 27.1, 55.9, 21.9, 61.2, 31.2, 42.7, 22.9, 40.3),
    "sft_grpo": _row(SETS, 31.0, 55.2, 24.4, 61.1, 35.7, 47.2, 30.6, 41.1),
    "sft_vold": _row(SETS, 32.0, 55.2, 28.0, 61.9, 37.9, 50.7, 31.8, 45.0),
}
# Traces of another model than the teacher: distillation adds nothing.
TABLE2 = {
    "sft_other_grpo": _row(("mathvision", "logicvista"), 24.4, 41.1),
    "sft_other_vold": _row(("mathvision", "logicvista"), 24.5, 41.2),
    "sft_grpo": _row(("mathvision", "logicvista"), 24.0, 38.3),
    "sft_vold": _row(("mathvision", "logicvista"), 28.0, 45.0),
}
TABLE3 = {
    "sft": _row(THREE, 49.7, 18.6, 28.9),
    "sft_grpo": _row(THREE, 50.5, 24.0, 38.3),
    "sft_vold": _row(THREE, 55.2, 28.0, 45.0),
}
TABLE6 = {  # MME's own scores, not percent
    "base": {"mme: cognition": 594.0, "mme: perception": 1564.0},
    "sft_vold": {"mme: cognition": 738.0, "mme: perception": 1530.0},
}
FIGURE5 = {"sft_grpo": 0.51, "sft_vold_unmasked": 0.56, "sft_vold": 0.58}  # reward of rollouts at the end of training
