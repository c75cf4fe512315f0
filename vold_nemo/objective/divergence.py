"""The distillation term: eight estimators of how far the student p is from the teacher q.

All are taken over the ids both tokenizers share, renormalised; a token whose sampled id is not among them carries none (but
for an exact estimator with ``one_sided``: it does not ask what was sampled).  Write s_j = log p_j - log q_j, y for the
sampled id, k1 = s_y.  "Expected gradient" is over y ~ p, on-policy, with both models at the sampling temperature and *without
a mask that depends on the sample*: under VOLD's reward mask (1 - r) the identities of the sampled estimators fail, and masked
k2 is another objective than masked exact KL, not a noisier one.

==========  ===============================  ===============================================  =============================
estimator   value per token                  gradient on logit j                              expected gradient
==========  ===============================  ===============================================  =============================
k2          k1²/2                            k1 (δ_jy - p_j)                                  ∇KL(p‖q); the paper's
k3          ρ - 1 - log ρ,  ρ = q_y/p_y      (1 - ρ) (δ_jy - p_j)                             ∇KL(q‖p), all of q's mass
                                                                                              within p's support
k1_reward   k1                               -- (a reward: `policy.py`)                       as k2 (immediate); of the KL
                                                                                              of whole sequences
                                                                                              (return_to_go)
vopd        KL(p‖q)                          (k1 - KL(p‖q)) (δ_jy - p_j)                      ∇KL(p‖q), at lower variance
reverse     KL(p‖q) = Σ p_j s_j              p_j (s_j - KL)                                   exact, no sampling
forward     KL(q‖p)                          p_j - q_j                                        exact
jsd         w KL(q‖m) + (1-w) KL(p‖m),       (1-w) p_j (log p_j/m_j - KL(p‖m))                exact
            m = w q + (1-w) p
topk        KL over the teacher's k largest  p_j (s_b(j) - value), b(j) the bucket of j       exact for its value, a lower
            ids and one bucket for the tail                                                   bound of KL(p‖q)
==========  ===============================  ===============================================  =============================

Per-token gradients ignore that y_t changes the later states (return_to_go does not).  k1 used as a *loss* has expected
gradient zero, which is why it is offered as a reward only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.objective.softmax import Distribution, Summary, row_blocks
from vold_nemo.objective.vocabulary import FILL, reduce_max, reduce_sum

SAMPLED = ("k2", "k3", "k1_reward", "vopd")
EXACT = ("reverse", "forward", "jsd", "topk")
_MAX_LOG_RHO = 30.0  # k3 grows like q/p: beyond e^30 its value and coefficient stay where they are, and stay finite


@dataclass(frozen=True)
class KLTerm:
    """Which estimator, and how it is bounded.

    Args:
        estimator: one of the table above.
        clamp: bound on a token's KL.  Beyond it a value is cut and its gradient is zero; for ``k1_reward`` the reward, for
            ``vopd`` the coefficient, is cut to ±clamp and still acts.
        top_k: ids kept by ``topk``; ids that tie with the k-th are kept too.
        jsd_weight: w, the teacher's weight in the mixture, in (0, 1).
        reward_horizon: ``immediate`` or ``return_to_go``, for ``k1_reward``.
        one_sided: a token whose sampled id only one tokenizer has keeps its KL; exact estimators only.

    Raises:
        ValueError: a value out of its range.
    """

    estimator: str = "k2"
    clamp: float | None = None
    top_k: int = 64
    jsd_weight: float = 0.5
    reward_horizon: str = "immediate"
    one_sided: bool = False

    def __post_init__(self):
        for name, good, allowed in (
            ("estimator", self.estimator in SAMPLED + EXACT, " | ".join(SAMPLED + EXACT)),
            ("clamp", self.clamp is None or self.clamp > 0, "a positive number, or null"),
            ("top_k", self.top_k >= 1, "1 or more"),
            ("jsd_weight", 0.0 < self.jsd_weight < 1.0, "between 0 and 1, both excluded"),
            ("one_sided", not self.one_sided or self.estimator in EXACT, f"false, or an estimator of {' | '.join(EXACT)}"),
            ("reward_horizon", self.reward_horizon in ("immediate", "return_to_go"), "immediate | return_to_go"),
        ):
            if not good:
                raise ValueError(f"objective.kl.{name} = {getattr(self, name)!r}; allowed: {allowed}")

    @property
    def summary(self) -> str | None:
        """The full-vocabulary sum that :func:`softmax.summarise` forms on the way."""
        return {"reverse": "reverse", "vopd": "reverse", "forward": "forward"}.get(self.estimator)


@dataclass
class Divergence:
    """KL of a chunk: ``value`` [c], whether it was ``clamped``, and its gradient.

    The gradient on the student's logits is ``sampled``·(δ_jy - p_j) plus, for the exact estimators, what :meth:`write`
    puts where the teacher's logits were.
    """

    value: Tensor
    clamped: Tensor
    sampled: Tensor | None  # [c]
    estimator: str
    active: Tensor  # bool [c], tokens that carry a KL
    mean: Tensor  # [c], the p-mean of g_j in a gradient p_j (g_j - mean); unread by the sampled estimators
    threshold: Tensor  # [c], topk: smallest teacher log-prob that is kept
    tail: Tensor  # [c], topk: log-ratio of the tail bucket
    jsd_weight: float

    def write(self, student: Distribution, teacher: Distribution, rows: slice, p: Tensor, weight: Tensor) -> Tensor:
        """weight·∂value/∂z over ``rows``, [b, v], into the teacher's logits; ``p`` [b, v] is the student's probability."""
        z, u = student.logits[rows], teacher.logits[rows]
        norm, norm_q = student.norm[rows], teacher.norm[rows]
        weight = weight[:, None]
        if self.estimator == "forward":
            return u.sub_(norm_q[:, None]).exp_().neg_().add_(p).mul_(weight)
        if self.estimator == "reverse":
            return u.neg_().add_(z).sub_((norm - norm_q + self.mean[rows])[:, None]).mul_(p).mul_(weight)
        log_p, log_q = student.logprobs(rows), teacher.logprobs(rows)
        if self.estimator == "jsd":
            g = (log_p - _log_mixture(log_p, log_q, self.jsd_weight)).mul_(1.0 - self.jsd_weight)
        else:
            g = torch.where(u >= self.threshold[rows, None], log_p - log_q, self.tail[rows, None])
        return torch.mul(g.sub_(self.mean[rows, None]), p, out=u).mul_(weight)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(w q + (1-w) p), per id."""
    return torch.logaddexp(log_q + math.log(weight), log_p + math.log1p(-weight))


def _jensen_shannon(summary: Summary, weight: float, group) -> tuple[Tensor, Tensor]:
    """Value and KL(p‖m).  Collectives: one SUM all-reduce."""
    student, teacher = summary.both
    sums = student.norm.new_zeros(2, len(student.norm))
    for rows in row_blocks(student.logits):
        log_p, log_q = student.logprobs(rows), teacher.logprobs(rows)
        log_m = _log_mixture(log_p, log_q, weight)
        sums[0, rows] = torch.linalg.vecdot(log_p.exp(), log_p - log_m)
        sums[1, rows] = torch.linalg.vecdot(log_q.exp(), log_q - log_m)
    to_p, to_q = reduce_sum(sums, group)
    return weight * to_q + (1.0 - weight) * to_p, to_p


def _top_k(summary: Summary, k: int, group) -> tuple[Tensor, Tensor, Tensor]:
    """Value, local threshold on the centred teacher logits, log-ratio of the tail.

    The tail is the log-sum-exp of its own ids, never 1 - Σ_top, so that it cannot be lost to rounding or underflow.
    Collectives: one all-gather of [c, k], one MAX and one SUM all-reduce.
    """
    student, teacher = summary.both
    kept = torch.topk(teacher.logits, min(k, teacher.logits.shape[1]), dim=1).values - teacher.norm[:, None]
    if group is not None and group.size() > 1:
        parts = [torch.empty_like(kept) for _ in range(group.size())]
        dist.all_gather(parts, kept.contiguous(), group=group)
        kept = torch.cat(parts, dim=1)
    threshold = torch.topk(kept, min(k, kept.shape[1]), dim=1).values[:, -1]
    # back to this rank's centred units, less what the two subtractions may have rounded away
    threshold = threshold.clamp(min=FILL / 2)
    slack = (threshold.abs() + teacher.norm.abs()) * torch.finfo(threshold.dtype).eps
    threshold = threshold + teacher.norm - slack
    top = torch.zeros_like(student.norm)
    tails = student.norm.new_empty(2, len(top))
    for rows in row_blocks(student.logits):
        log_p, log_q = student.logprobs(rows), teacher.logprobs(rows)
        kept = teacher.logits[rows] >= threshold[rows, None]
        top[rows] = torch.where(kept, log_p.exp() * (log_p - log_q), 0.0).sum(dim=1)
        tails[0, rows] = log_p.masked_fill_(kept, FILL).logsumexp(dim=1)
        tails[1, rows] = log_q.masked_fill_(kept, FILL).logsumexp(dim=1)
    tops = reduce_max(tails.clone(), group)
    top, *sums = reduce_sum(torch.stack([top, *(tails - tops).exp()]), group)
    tail_p, tail_q = torch.stack(sums).log() + tops
    return top + tail_p.exp() * (tail_p - tail_q), threshold, tail_p - tail_q


def clamped_k1(k1: Tensor, clamp: float | None) -> tuple[Tensor, Tensor]:
    """``k1`` within ±``clamp`` (None: as it is), and where it was beyond."""
    bound = math.inf if clamp is None else clamp
    return k1.clamp(-bound, bound), k1.abs() > bound


def _asked_for(summary: Summary) -> Tensor:
    """The full-vocabulary sum of :attr:`KLTerm.summary`."""
    assert summary.divergence is not None
    return summary.divergence


def diverge(term: KLTerm, summary: Summary, group: dist.ProcessGroup | None) -> Divergence:
    """KL of a chunk by ``term.estimator``; zero, with zero gradient, where a token carries none."""
    log_ratio = summary.log_ratio
    value = mean = threshold = tail = torch.zeros_like(log_ratio)
    sampled: Tensor | None = None
    match term.estimator:
        case "k2":
            value, sampled = 0.5 * log_ratio.square(), log_ratio
        case "k3":
            log_rho = (-log_ratio).clamp(max=_MAX_LOG_RHO)
            value, sampled = torch.expm1(log_rho) - log_rho, -torch.expm1(log_rho)
        case "k1_reward":
            value, sampled = log_ratio, torch.zeros_like(log_ratio)
        case "vopd":
            value = _asked_for(summary)
            sampled = log_ratio - value
        case "reverse" | "forward":
            value = mean = _asked_for(summary)
        case "jsd":
            value, to_p = _jensen_shannon(summary, term.jsd_weight, group)
            mean = (1.0 - term.jsd_weight) * to_p
        case "topk":
            value, threshold, tail = _top_k(summary, term.top_k, group)
            mean = value
    clamped = torch.zeros_like(summary.shared)
    if term.clamp is not None:
        if term.estimator == "k1_reward":
            value, clamped = clamped_k1(value, term.clamp)
        elif term.estimator == "vopd" and sampled is not None:
            clamped, sampled = sampled.abs() > term.clamp, sampled.clamp(-term.clamp, term.clamp)
        else:
            clamped, value = value > term.clamp, value.clamp(max=term.clamp)
            sampled = None if sampled is None else sampled.masked_fill(clamped, 0.0)
    active = torch.ones_like(summary.shared) if term.one_sided else summary.shared
    value = value.masked_fill(~active, 0.0)
    sampled = None if sampled is None else sampled.masked_fill(~active, 0.0)
    return Divergence(
        value, clamped & active, sampled, term.estimator, active, mean, threshold, tail, term.jsd_weight
    )
