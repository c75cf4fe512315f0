"""Eq. 5 and 6: clipped policy gradient plus β × masked KL to the teacher, on the student's own rollouts, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.objective.counting import count, places
from vold_nemo.objective.divergence import Divergence, KLTerm, diverge
from vold_nemo.objective.head import working_type
from vold_nemo.objective.policy import CorrectionTerm, PolicyTerm, surrogate
from vold_nemo.objective.sequences import Sequences
from vold_nemo.objective.vocabulary import VocabularyShard
from vold_nemo.objective.walk import Chunk, TeacherStates, Walk, formed_in_forward, refuse_unsampleable


@dataclass(frozen=True)
class Objective:
    """Which loss.

    Args:
        policy: None trains on the KL alone.
        kl: None trains on rewards alone; no teacher is needed then.
        temperature: of sampling: log-probs and the student's side of the KL are at it.
        teacher_temperature: of the teacher's side; None = the same.
        chunk_tokens: tokens that meet the LM heads at a time.
        kernels: torch | triton, who walks over a chunk's logits (`kernels.py`).
    """

    policy: PolicyTerm | None = field(default_factory=PolicyTerm)
    kl: KLTerm | None = None
    correction: CorrectionTerm = field(default_factory=CorrectionTerm)
    temperature: float = 1.0
    teacher_temperature: float | None = None
    chunk_tokens: int = 512
    kernels: str = "torch"

    def __post_init__(self):
        if self.teacher_temperature is not None and not self.teacher_temperature > 0:
            raise ValueError(
                f"objective.kl.teacher_temperature = {self.teacher_temperature!r}; allowed: a positive number, or null"
            )

    @property
    def of_teacher(self) -> float:
        """The teacher's temperature."""
        return self.temperature if self.teacher_temperature is None else self.teacher_temperature


@dataclass
class TokenBatch:
    """The n predicted tokens of one micro-batch, flat, in the right frame: ``hidden[i]`` predicts ``targets[i]``.

    Attributes:
        targets: int64 [n].
        sequence: int64 [n], index of the token's sequence; whole sequences, but for what the ranks of ``context`` hold.
        policy_weight: [n], mask × global normalisation (`weights.py`); 0 = not trained on.
        kl_weight: [n], β × reward mask × global normalisation; 0 = no KL.
        advantages: [n].
        old_logprobs: [n], of the weights that this batch of rollouts met first; None = on-policy, the detached current ones.
        rollout_logprobs: [n], the engine's.
        response: bool [n], tokens of responses, over which sequence means and sums run; None = those with a weight.
        position: int64 [n], place in the token's sequence; None = the tokens of a sequence stand in order.
    """

    targets: Tensor
    sequence: Tensor
    policy_weight: Tensor
    kl_weight: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    response: Tensor | None = None
    position: Tensor | None = None


@dataclass
class TokenStatistics:
    """What each token said, detached, [n]; 0 / False for tokens that took no part.  Equal on all ranks of the TP group."""

    active: Tensor  # bool: response tokens (or those with a weight)
    logprob: Tensor  # over the sampleable ids
    entropy: Tensor
    ratio: Tensor  # π / π_old: the token's, or its sequence's under gspo
    clipped: Tensor  # bool
    rollout_ratio: Tensor  # π_old / π_engine, before truncation
    kl: Tensor  # value of the estimator, unweighted
    kl_active: Tensor  # bool: tokens whose KL was formed
    kl_clamped: Tensor  # bool
    policy_loss: Tensor  # weighted: sums to the policy part of the loss
    kl_loss: Tensor  # weighted: sums to the KL part; under k1_reward what the penalty adds to the policy's

    @classmethod
    def empty(cls, like: Tensor) -> TokenStatistics:
        boolean = {"active", "clipped", "kl_active", "kl_clamped"}
        zeros = {f.name: torch.zeros_like(like, dtype=torch.bool if f.name in boolean else None) for f in fields(cls)}
        return cls(**zeros)

    def sums(self) -> dict[str, Tensor]:
        """Scalars to be *summed* over micro-batches and data-parallel ranks; divide by ``tokens`` and ``kl_tokens``."""
        return {
            "tokens": self.active.sum(),
            "entropy": self.entropy.sum(),
            "clipped": self.clipped.sum(),
            "ratio_rollout_vs_train": self.rollout_ratio.sum(),
            "loss_policy": self.policy_loss.sum(),
            "loss_kl": self.kl_loss.sum(),
            "kl": self.kl.sum(),
            "kl_tokens": self.kl_active.sum(),
            "kl_clamped": self.kl_clamped.sum(),
        }

    def extremes(self) -> dict[str, Tensor]:
        """``kl_min`` is to be *minimised*, ``ratio_rollout_vs_train_max`` *maximised*; +inf / 0 where no token has one."""
        kl = self.kl.masked_fill(~self.kl_active, torch.inf)
        none = kl.new_tensor(torch.inf)
        return {
            "kl_min": kl.min() if len(kl) else none,
            "ratio_rollout_vs_train_max": self.rollout_ratio.max() if len(kl) else 0 * self.rollout_ratio.sum(),
        }


def vold_loss(
    hidden: Tensor,
    head: Tensor,
    batch: TokenBatch,
    shard: VocabularyShard,
    objective: Objective,
    *,
    teacher: TeacherStates | None = None,
    context: dist.ProcessGroup | None = None,
    head_gradient: Tensor | None = None,
) -> tuple[Tensor, TokenStatistics]:
    """loss = Σ_t policy_weight_t · L_t + kl_weight_t · KL_t, and what each token said.

    L_t is `policy.surrogate` of the token's (or sequence's) ratio and advantage; KL_t one of `divergence`'s estimators.
    ``k1_reward`` is no loss but an addition of -kl_weight_t · k1_t (or its return-to-go) to the weighted advantage.
    Importance corrections multiply the advantage, and the KL if ``correction.on_kl``.

    Shapes: hidden [n, H], head [v, H]; the teacher's [n, Ht] and [v, Ht]; v rows of this rank, the same token ids for both
    heads.  ``teacher`` is asked for where a token has a KL weight.

    Gradient contract: ∂hidden is this rank's *partial* sum over its vocabulary rows, for the caller to reduce over TP;
    ∂head is whole.  With ``head_gradient`` (float32 [v, H], Megatron's ``main_grad``) ∂head is added to it in place while the
    loss is formed, and autograd gets none: no buffer of its size is ever made.  The loss must then not be scaled.

    The loss is the same on every rank of ``shard.group``.  Tokens without weight (and without ``response``) are never read.
    One pass; a no-grad pass comes first where a token's coefficient needs its whole sequence: off-policy GSPO, on-policy
    sequence-level correction, returns-to-go.

    ``context``: ranks that hold the other tokens of these sequences.  The loss is then that of this rank's tokens, ∂hidden is
    whole for them and ∂head is a part; both add up over ``context``.

    The host waits for the device once, before the first chunk, for all that is checked and for how many tokens there are.

    Collectives: per chunk one MAX and one SUM all-reduce of a few [c] rows over ``shard.group`` (jsd: one more SUM; topk: one
    more of each and an all-gather of [c, k]).  Over ``context`` those of :class:`sequences.Sequences`, where a coefficient
    needs its whole sequence.

    Raises:
        ValueError: lengths that differ, weights that are not finite, weight outside ``response``, a target that cannot be
            sampled, a KL weight without a KL term or on a token whose teacher row is missing (all zero or not finite).
    """
    chosen = _checked(hidden, head, batch, shard, objective, teacher)
    if teacher is not None:
        teacher = TeacherStates(teacher.hidden.detach(), teacher.head.detach()) if objective.kl is not None else None
    statistics = TokenStatistics.empty(batch.policy_weight.detach().to(working_type(hidden)))

    def run(need_hidden: bool, need_head: bool):
        walk = Walk(
            hidden.detach(), head.detach(), batch.targets, shard,
            temperature=objective.temperature, chunk_tokens=objective.chunk_tokens, kernels=objective.kernels,
        )  # fmt: skip
        walk.form_gradients(need_hidden, need_head, head_gradient)
        _Step(walk, batch, chosen, objective, teacher, context, statistics).run()
        return (statistics.policy_loss + statistics.kl_loss).sum(), *walk.gradients()

    return formed_in_forward(hidden, head, run), statistics


@dataclass
class _Chosen:
    """The tokens that take part, and weights in the working type, [n] each."""

    active: Tensor  # bool: response tokens (or those with a weight)
    with_kl: Tensor  # bool: those of them with a KL weight
    policy_weight: Tensor
    kl_weight: Tensor
    number: int
    number_with_kl: int

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them, those with a KL weight, and those without."""
        others = self.active & ~self.with_kl
        with_kl, number = self.number_with_kl, self.number
        return places(self.active, number), places(self.with_kl, with_kl), places(others, number - with_kl)


class _Step:
    """One evaluation of the objective: coefficients of tokens and the chunks that use them."""

    def __init__(
        self, walk: Walk, batch: TokenBatch, chosen: _Chosen, objective: Objective, teacher: TeacherStates | None,
        context: dist.ProcessGroup | None, statistics: TokenStatistics,
    ):  # fmt: skip
        self.walk, self.objective, self.teacher = walk, objective, teacher
        self.policy, self.kl, self.correction = objective.policy, objective.kl, objective.correction

        def plain(values: Tensor) -> Tensor:
            return values.detach().to(walk.dtype)

        self.batch, self.context, self.statistics = batch, context, statistics
        self.advantages, self.policy_weight, self.kl_weight = plain(batch.advantages), chosen.policy_weight, chosen.kl_weight
        self.old = None if batch.old_logprobs is None else plain(batch.old_logprobs)
        self.rollout = None if batch.rollout_logprobs is None else plain(batch.rollout_logprobs)
        self.reward_kl = self.kl is not None and self.kl.estimator == "k1_reward"
        self.to_go = self.kl is not None and self.reward_kl and self.kl.reward_horizon == "return_to_go"
        self.statistics.active = chosen.active
        self.rows, self.kl_rows, self.other_rows = chosen.rows()

    def run(self) -> None:
        gspo = self.policy is not None and self.policy.loss == "gspo"
        by_sequence = self.correction.whole_sequence
        whole = gspo or self.to_go  # a token's coefficient depends on other tokens of its sequence
        if whole or by_sequence:
            position = None if self.batch.position is None else self.batch.position[self.rows]
            self.sequences = Sequences(self.batch.sequence[self.rows], position, self.context)
        # on-policy and uncorrected, gspo's ratio is 1: its coefficients follow from the advantages without a pass
        moving = self.old is not None or self.reward_kl or self.correction.mode != "none"
        kl_rows, other_rows = self.kl_rows, self.other_rows  # the first only with a KL term, as was checked
        slopes, logprob, k1 = (torch.zeros_like(self.policy_weight) for _ in range(3))
        if self.to_go or (gspo and moving) or (by_sequence and self.old is None):
            first, second = (kl_rows, other_rows) if whole and self.reward_kl else (kl_rows[:0], self.rows)
            for rows, teacher in ((first, self.teacher), (second, None)):
                for chunk in self._chunks(rows, teacher):
                    logprob[chunk.rows] = chunk.summary.logprob
                    if teacher is not None:
                        k1[chunk.rows] = self._k1(chunk)
        if by_sequence:
            gap = self._engine_gap(self.rows, (logprob if self.old is None else self.old)[self.rows])
            self.sequence_importance = torch.ones_like(logprob)
            self.sequence_importance[self.rows] = self.correction.weight(self.sequences.sum(gap))
        if whole:
            slopes[self.rows] = self._policy(self.rows, logprob[self.rows], k1[self.rows])
            if self.reward_kl:  # by now part of the advantages: the second pass needs no teacher
                kl_rows, other_rows = kl_rows[:0], self.rows
        for rows, teacher in ((kl_rows, self.teacher), (other_rows, None)):
            for chunk in self._chunks(rows, teacher, self.kl.summary if self.kl is not None else None):
                self._chunk(chunk, slopes if whole else None)

    def _chunks(self, rows: Tensor, teacher: TeacherStates | None, divergence: str | None = None) -> Iterator[Chunk]:
        return self.walk.chunks(rows, teacher, divergence, self.objective.of_teacher)

    def _chunk(self, chunk: Chunk, slopes: Tensor | None) -> None:
        rows, summary = chunk.rows, chunk.summary
        self.statistics.logprob[rows], self.statistics.entropy[rows] = summary.logprob, summary.entropy
        divergence, weight, k1 = None, None, None
        if summary.teacher is not None and self.reward_kl:
            k1 = self._k1(chunk)
        elif summary.teacher is not None:
            divergence, weight = self._diverge(chunk), self.kl_weight[rows]
            if self.correction.on_kl:
                weight = weight * self._importance(rows, summary.logprob)
            self.statistics.kl_loss[rows] = weight * divergence.value
        slope = self._policy(rows, summary.logprob, k1) if slopes is None else slopes[rows]
        self.walk.backward(chunk, slope, divergence, weight)

    def _policy(self, rows: Tensor, logprob: Tensor, k1: Tensor | None) -> Tensor:
        """∂(policy loss)/∂logprob of ``rows``: of a chunk, or of all rows where whole sequences matter."""
        statistics, policy_weight = self.statistics, self.policy_weight[rows]
        old = logprob if self.old is None else self.old[rows]
        log_ratio, importance = logprob - old, self._importance(rows, logprob)
        if self.rollout is not None:
            statistics.rollout_ratio[rows] = (old - self.rollout[rows]).exp()
        if self.policy is None and not self.reward_kl:
            statistics.ratio[rows] = log_ratio.exp()
            return torch.zeros_like(logprob)
        advantage = torch.zeros_like(logprob)
        if self.policy is not None:  # what stands beside a weight of 0 may be anything
            advantage = torch.where(policy_weight == 0, 0.0, policy_weight * self.advantages[rows] * importance)
        gspo = self.policy is not None and self.policy.loss == "gspo"
        if gspo:
            log_ratio = self.sequences.mean(log_ratio)
        out = surrogate(self.policy, log_ratio, advantage)
        statistics.policy_loss[rows] = out.loss
        if self.reward_kl and k1 is not None:
            cost = self.kl_weight[rows] * k1
            if self.correction.on_kl:
                cost = cost * importance
            if self.to_go:
                cost = self.sequences.to_go(cost)
            without, out = out, surrogate(self.policy, log_ratio, advantage - cost)
            statistics.kl_loss[rows] = out.loss - without.loss  # what the penalty adds
        statistics.clipped[rows], statistics.ratio[rows] = out.clipped, out.ratio
        return self.sequences.mean(out.slope) if gspo else out.slope

    def _importance(self, rows: Tensor, logprob: Tensor) -> Tensor:
        if self.correction.mode == "none":
            return torch.ones_like(logprob)
        if self.correction.whole_sequence:
            return self.sequence_importance[rows]
        old = logprob if self.old is None else self.old[rows]
        return self.correction.weight(self._engine_gap(rows, old))

    def _engine_gap(self, rows: Tensor, old: Tensor) -> Tensor:
        assert self.rollout is not None  # checked where a correction is asked for
        return old - self.rollout[rows]

    def _k1(self, chunk: Chunk) -> Tensor:
        return self._diverge(chunk).value

    def _diverge(self, chunk: Chunk) -> Divergence:
        """The KL of a chunk, which its tokens' statistics take down."""
        assert self.kl is not None
        divergence = diverge(self.kl, chunk.summary, self.walk.shard.group)
        self.statistics.kl[chunk.rows] = divergence.value
        self.statistics.kl_clamped[chunk.rows] = divergence.clamped
        self.statistics.kl_active[chunk.rows] = divergence.active
        return divergence


def _checked(
    hidden: Tensor, head: Tensor, batch: TokenBatch, shard: VocabularyShard, objective: Objective, teacher: TeacherStates | None
) -> _Chosen:
    n = len(hidden)
    for f in fields(batch):
        value = getattr(batch, f.name)
        if value is not None and value.shape != (n,):
            raise ValueError(f"{f.name} {tuple(value.shape)} must be [{n}], one per hidden state")
    mode = objective.correction.mode
    policy_weight, kl_weight = (w.detach().to(working_type(hidden)) for w in (batch.policy_weight, batch.kl_weight))
    weighted, needs_teacher = (policy_weight != 0) | (kl_weight != 0), kl_weight != 0
    active = weighted if batch.response is None else batch.response
    flags = {
        "active": active, "needs_teacher": needs_teacher, "infinite": ~(policy_weight.isfinite() & kl_weight.isfinite()),
        "outside": weighted & ~active, "unsampleable": active & ~shard.can_sample(batch.targets),
        "without_policy": policy_weight != 0,
    }  # fmt: skip
    fits = teacher is not None and teacher.hidden.ndim == 2 and len(teacher.hidden) == n
    if teacher is not None and fits:  # a missing score must never pass for a score: zeros would be a uniform teacher
        norm = teacher.hidden.detach().abs().amax(dim=1)
        flags["missing"] = needs_teacher & ~((norm > 0) & norm.isfinite())
    told = count(**flags)
    if told["infinite"]:
        raise ValueError("a token weight is not finite")
    if told["outside"]:
        raise ValueError(f"{told['outside']} tokens have a weight but are not part of a response")
    if objective.policy is None and told["without_policy"]:
        raise ValueError("policy_weight is not 0 although the policy term is off (objective.policy.enabled = false)")
    if mode != "none" and batch.rollout_logprobs is None:
        raise ValueError(f"objective.correction.mode = {mode!r} needs the engine's log-probs of the rollouts")
    if scored := told["needs_teacher"]:
        if objective.kl is None:
            raise ValueError("kl_weight is not 0 although the KL term is off (objective.kl.enabled = false)")
        if teacher is None:
            raise ValueError(f"{scored} tokens have a KL weight but the teacher scored none of them")
        if not fits or teacher.head.shape != (len(head), teacher.hidden.shape[1]):
            found = f"teacher_hidden {tuple(teacher.hidden.shape)} and teacher_head {tuple(teacher.head.shape)}"
            raise ValueError(f"{found} must be [{n}, Ht] and [{len(head)}, Ht]")
        if told["missing"]:
            at = flags["missing"].nonzero().flatten()[:8].tolist()
            raise ValueError(f"teacher rows of {told['missing']} tokens with a KL weight are missing (tokens {at} ...)")
    if told["unsampleable"]:
        refuse_unsampleable(batch.targets, flags["unsampleable"])
    return _Chosen(active, needs_teacher & active, policy_weight, kl_weight, told["active"], scored)
