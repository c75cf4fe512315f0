"""The objective of VOLD: torch only, vocabulary-parallel, chunked; full logits never exist.

`loss.py` is the entrance: eq. 5 and 6.  `walk.py` takes chunks of tokens through both LM heads, `softmax.py` normalises them
across ranks, `divergence.py` and `policy.py` hold the mathematics, `sequences.py` the sums over whole
sequences, `head.py` the matrix products.  What one number per
rollout or token decides lies beside them: `advantages.py`, `masks.py`, `weights.py`, `beta.py`.
"""

from vold_nemo.objective.advantages import group_advantages, penalised_rewards
from vold_nemo.objective.beta import BetaSchedule
from vold_nemo.objective.divergence import KLTerm, clamped_k1
from vold_nemo.objective.logprobs import nll_loss, token_logprobs
from vold_nemo.objective.loss import Objective, TokenBatch, TokenStatistics, vold_loss
from vold_nemo.objective.masks import kl_masks, kl_token_mask, perplexity_weights
from vold_nemo.objective.policy import CorrectionTerm, PolicyTerm
from vold_nemo.objective.vocabulary import VocabularyShard
from vold_nemo.objective.walk import TeacherStates
from vold_nemo.objective.weights import kl_sequence_weights, sequence_weights

__all__ = [
    "BetaSchedule",
    "CorrectionTerm",
    "KLTerm",
    "Objective",
    "PolicyTerm",
    "TeacherStates",
    "TokenBatch",
    "TokenStatistics",
    "VocabularyShard",
    "clamped_k1",
    "group_advantages",
    "kl_masks",
    "kl_sequence_weights",
    "kl_token_mask",
    "nll_loss",
    "penalised_rewards",
    "perplexity_weights",
    "sequence_weights",
    "token_logprobs",
    "vold_loss",
]
