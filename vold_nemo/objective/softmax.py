"""Normalisers of one chunk of logits under vocabulary parallelism.

Every rank centres its logits z on its own largest one, m_r, and sums relative to it; the ranks then agree on
m = max_r m_r and add up Σ_r exp(m_r - m)·(...).  One MAX and one SUM all-reduce of a few [c] rows serve a whole chunk,
and no logarithm of an underflowed sum is ever taken, at logits of ±1e4 or on a rank that holds padding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vold_nemo.objective.vocabulary import FILL, FLOOR, VocabularyShard, reduce_max, reduce_sum

_CACHE_BYTES = 1 << 20  # a block of rows that stays in a core's cache between element-wise passes
_GPU_BYTES = 64 << 20  # a block that keeps a GPU busy while its temporaries stay small beside the logits


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Blocks of rows of ``logits`` [c, v], so that the temporaries of a pass stay small; cache-sized on a CPU."""
    rows, columns = logits.shape
    step = max(1, (_GPU_BYTES if logits.is_cuda else _CACHE_BYTES) // max(1, columns * logits.element_size()))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@dataclass
class Distribution:
    """One model over the shared ids of a chunk: log p_j = logits[:, j] - norm."""

    logits: Tensor  # [c, v], in units of the temperature, centred on this rank's maximum; FILL where the id is not shared
    norm: Tensor  # [c], this rank's
    target: Tensor  # [c], log p of the target; 0 where the target is not shared

    def logprobs(self, rows: slice) -> Tensor:
        return self.logits[rows] - self.norm[rows, None]


@dataclass
class Summary:
    """What one chunk says about its targets.  Identical on every rank but for ``one_sided``."""

    logprob: Tensor  # [c], log π(target) over the sampleable ids
    entropy: Tensor  # [c], over the sampleable ids
    sampleable: Tensor  # bool [c], whether the target is
    shared: Tensor  # bool [c], whether the target is shared
    shared_mass: Tensor  # [c], Σ_{j shared} π_j: p over sampleable ids = shared_mass · p over shared ids
    one_sided: Tensor  # [c, o], log π of this rank's one-sided ids
    student: Distribution
    teacher: Distribution | None
    divergence: Tensor | None  # [c], KL in the direction asked for

    @property
    def both(self) -> tuple[Distribution, Distribution]:
        """Student and teacher.  Only with a teacher."""
        assert self.teacher is not None
        return self.student, self.teacher

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q of the target over the shared ids; 0 where it is not shared.  Only with a teacher."""
        student, teacher = self.both
        return student.target - teacher.target


def _centre(logits: Tensor, scale: float, unshared: Tensor) -> Tensor:
    """Scale, exclude and centre ``logits`` [b, v] in place; returns the centres [b]."""
    if scale != 1.0:
        logits.mul_(scale)
    if len(unshared):
        logits.index_fill_(1, unshared, FILL)
    centre = logits.amax(dim=1).clamp_(min=FLOOR)
    logits.sub_(centre[:, None])
    return centre


def _pick(logits: Tensor, column: Tensor, scale: float) -> Tensor:
    return logits.gather(1, column[:, None]).squeeze(1).mul_(scale)


def normalise(
    logits: Tensor, teacher_logits: Tensor | None, scale: float, teacher_scale: float, unshared: Tensor, divergence: str | None
) -> Tensor:
    """Scale, fill and centre the tables [c, v] in place; with e_j of the centred z and f_j of the centred u, [6, c]:

    Σ e_j, Σ e_j z_j, the centre of z, Σ f_j, Σ e_j (z_j - u_j) or Σ f_j (u_j - z_j), the centre of u.  0 without a teacher.
    """
    sums = logits.new_zeros(6, len(logits))
    total, moment, centre, total_q, cross, centre_q = sums
    for rows in row_blocks(logits):
        z = logits[rows]
        centre[rows] = _centre(z, scale, unshared)
        p = z.exp()
        total[rows] = p.sum(dim=1)
        moment[rows] = torch.linalg.vecdot(p, z)
        if teacher_logits is not None:
            u = teacher_logits[rows]
            centre_q[rows] = _centre(u, teacher_scale, unshared)
            if divergence == "reverse":
                cross[rows] = torch.linalg.vecdot(p, z - u)
            q = torch.exp(u, out=p)
            total_q[rows] = q.sum(dim=1)
            if divergence == "forward":
                cross[rows] = torch.linalg.vecdot(q, u - z)
    return sums


def summarise(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    shard: VocabularyShard,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    divergence: str | None = None,
    kernels: str = "torch",
) -> Summary:
    """Normalise a chunk; ``logits`` and ``teacher_logits`` [c, v] are overwritten with their centred selves.

    Over the sampleable ids S: log-prob of the target and entropy.  Over the shared ids C ⊂ S, renormalised: the student
    p, the teacher q, and Σ p log(p/q) (``divergence="reverse"``) or Σ q log(q/p) (``"forward"``) where one is asked for.
    S is C and the few one-sided ids O: log Z_S = logaddexp(log Z_C, log Z_O), and entropy follows by the chain rule, so
    no mass is ever found by subtraction.

    Collectives: one MAX, one SUM all-reduce over ``shard.group``.
    """
    columns, here = shard.locate(targets)
    scale, teacher_scale = 1.0 / temperature, 1.0 / teacher_temperature
    target = _pick(logits, columns, scale)
    target_shared = here & shard.shared[columns]
    target_sampleable = here & shard.sampleable[columns]
    one_sided = logits[:, shard.one_sided] * scale
    zeros = torch.zeros_like(target)

    if one_sided.shape[1]:
        centre_o = one_sided.amax(dim=1)
        exp_o = (one_sided - centre_o[:, None]).exp_()
        sum_o, moment_o = exp_o.sum(dim=1), ((one_sided - centre_o[:, None]) * exp_o).sum(dim=1)
    else:
        centre_o, sum_o, moment_o = torch.full_like(target, FLOOR), zeros, zeros

    target_q = zeros if teacher_logits is None else _pick(teacher_logits, columns, teacher_scale)
    if kernels == "triton":
        from vold_nemo.objective.kernels import normalise as form
    else:
        form = normalise
    total, moment, centre, total_q, cross, centre_q = form(
        logits, teacher_logits, scale, teacher_scale, shard.unshared, divergence
    )
    centres = torch.stack([centre, centre_o, centre_q])
    tops = reduce_max(centres.clone(), shard.group)
    offset, offset_o, offset_q = centres - tops  # <= 0; about FLOOR on a rank with nothing to say
    share, share_o, share_q = offset.exp(), offset_o.exp(), offset_q.exp()
    cross_share, cross_total, sign = (share_q, total_q, -1.0) if divergence == "forward" else (share, total, 1.0)
    sums = reduce_sum(
        torch.stack([
            share * total,
            share * (moment + offset * total),
            share_o * sum_o,
            share_o * (moment_o + offset_o * sum_o),
            share_q * total_q,
            # a finite difference of offsets times a share that may be exactly 0
            cross_share * (cross + sign * (offset - offset_q) * cross_total),
            torch.where(target_sampleable, target - tops[0], zeros),
            torch.where(target_shared, target_q - tops[2], zeros),
            target_sampleable.to(target.dtype),
            target_shared.to(target.dtype),
        ]),
        shard.group,
    )
    total, moment, sum_o, moment_o, total_q, cross, target, target_q, is_sampleable, is_shared = sums
    is_shared = is_shared > 0

    tiny = torch.finfo(total.dtype).tiny
    sum_o = sum_o.clamp(min=tiny)
    log_c, log_q = total.log(), total_q.clamp(min=tiny).log()
    log_o = sum_o.log() + (tops[1] - tops[0])
    log_s = torch.logaddexp(log_c, log_o)
    mass, mass_o = (log_c - log_s).exp(), (log_o - log_s).exp()
    entropy = mass * (log_c - moment / total) - torch.xlogy(mass, mass)
    entropy = entropy + mass_o * (sum_o.log() - moment_o / sum_o) - torch.xlogy(mass_o, mass_o)

    student = Distribution(logits, log_c - offset, torch.where(is_shared, target - log_c, zeros))
    teacher = None
    if teacher_logits is not None:
        teacher = Distribution(teacher_logits, log_q - offset_q, torch.where(is_shared, target_q - log_q, zeros))
        if divergence == "reverse":
            cross = cross / total - log_c + log_q
        elif divergence == "forward":
            cross = cross / total_q - log_q + log_c
    return Summary(
        logprob=target - log_s,
        entropy=entropy,
        sampleable=is_sampleable > 0,
        shared=is_shared,
        shared_mass=mass,
        one_sided=one_sided - (tops[0] + log_s)[:, None],
        student=student,
        teacher=teacher,
        divergence=cross if divergence else None,
    )
