"""Rewards: answer extraction and verification."""

from vold_nemo.rewards.alarms import diagnose
from vold_nemo.rewards.scoring import Scorer, score_answers
from vold_nemo.rewards.verdict import Item, Verdict

__all__ = ["Item", "Scorer", "Verdict", "diagnose", "score_answers"]
