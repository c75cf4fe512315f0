"""What decides a step besides its rollouts: the objective's options, and the layout that the work is spread over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepOptions:
    """Names and meanings are those of the configuration's keys in the comments.

    Args:
        shared: bool [V], ids that both tokenizers share.
        eos_ids: ids that end a response.
        teacher_cost: of each teacher, its forward of a token in units of the student's forward and backward.
        pad_multiple: of every padded length (sequence parallelism, FP8).
        expert_parallel: > 1 makes micro-batch counts equal on all data ranks, those of each teacher and unscored ones.
        micro_batch_multiple: of each of these counts (virtual pipeline stages).
    """

    shared: Tensor
    eos_ids: tuple[int, ...] = ()
    # objective.policy
    policy: bool = True
    advantage: str = "standardised"
    std_correction: int = 1
    std_delta: float = 1e-4
    policy_average: str = "sequence"
    # objective.kl
    kl: bool = True
    mask: str = "reward"
    mask_one_sided: bool = True
    mask_eos: bool = False
    kl_average: str = "sequence"
    clamp: float | None = None
    kl_in_rewards: bool = False  # estimator=k1_reward, reward_placement=before: the KL is not in the loss
    # objective.skip, rollout.max_tokens, rollout.overlong
    skip: bool = True
    max_tokens: int = 8192
    overlong: str = "keep"
    # vold.updates_per_step, vold.micro_batch_tokens, and the layout
    updates: int = 1
    micro_batch_tokens: int = 16384
    data_ranks: int = 1
    pad_multiple: int = 1
    expert_parallel: int = 1
    micro_batch_multiple: int = 1
    teacher_cost: tuple[float, ...] = (1.0,)

    @property
    def reads_teacher_first(self) -> bool:
        """Whether the teacher's log-probs decide a weight or an advantage before any gradient."""
        return self.kl and (self.mask == "perplexity" or self.kl_in_rewards)
