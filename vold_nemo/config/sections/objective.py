"""The loss of stage 2."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config.fields import ABOVE_ONE, ABOVE_ZERO, BETWEEN, COUNT, POSITIVE, SHARE, Bound, key, section

# As in objective/divergence.py and objective/weights.py, which know torch alone; a test keeps them equal.
EXACT = ("reverse", "forward", "jsd", "topk")  # estimators that do not ask which id was sampled
ESTIMATORS = ("k2", "k1_reward", "k3", *EXACT, "vopd")
AVERAGES = ("token", "sequence", "constant")


@dataclass
class PolicyConfig:
    """The policy-gradient term."""

    enabled: bool = key(True, "false = distillation alone")
    loss: str = key("grpo", "ratio of a token, or of a whole sequence", choices=("grpo", "gspo"))
    clip_low: float = key(0.2, "paper", bound=SHARE)
    clip_high: float = key(0.3, "paper", bound=COUNT)
    dual_clip: float | None = key(None, "bound on the loss where the advantage is negative (off in the paper)",
                                  bound=Bound("above 1, or null", ABOVE_ONE.holds))  # fmt: skip
    advantage: str = key("standardised", "paper: standardised, as GRPO; centred is Dr. GRPO's",
                         choices=("standardised", "centred"))  # fmt: skip
    std_correction: int = key(1, "ours", bound=Bound("0 (divide by n) | 1 (divide by n-1)", lambda x: x in (0, 1)))
    std_delta: float = key(1e-4, "ours: the paper's delta in (r - mean)/(std + delta)", bound=COUNT)
    average: str = key("sequence", "ours: over all tokens, over each answer's and then the answers, or over max_tokens",
                       choices=AVERAGES)  # fmt: skip


@dataclass
class BetaConfig:
    """Weight of the KL term, and how it moves over the steps of stage 2."""

    value: float = key(1e-3, "paper's supplement (0.1 in its section 4.1; never reconciled)", bound=COUNT)
    final: float | None = key(None, "value reached at the end of an anneal", bound=COUNT)
    schedule: str = key("constant", "from value to final", choices=("constant", "linear", "exponential"))
    steps: int | None = key(None, "steps over which the anneal runs; null = vold.steps", bound=POSITIVE)
    warmup_steps: int = key(0, "steps over which beta first rises from 0 to value", bound=COUNT)
    off_step: int | None = key(None, "from this step on beta = 0: distillation first, then pure GRPO", bound=COUNT)


@dataclass
class KLConfig:
    """The distillation term."""

    enabled: bool = key(True, "false = GRPO alone: no teacher is loaded")
    estimator: str = key("k2", "paper: k2 (vold_nemo/objective/divergence.py compares them)", choices=ESTIMATORS)
    mask: str = key("reward", "paper: reward, no KL where the answer is right",
                    choices=("reward", "none", "all_wrong_group", "perplexity"))  # fmt: skip
    mask_one_sided: bool = key(True, "ours: false lets exact estimators act where the sampled id is not the teacher's")
    mask_eos: bool = key(False, "ours: true takes the end-of-sequence token out of the KL")
    average: str = key("sequence", "ours: as objective.policy.average", choices=AVERAGES)
    clamp: float | None = key(None, "per-token bound on the KL; the clamped share is logged", bound=ABOVE_ZERO)
    teacher_temperature: float | None = key(None, "ours: null = the sampling temperature", bound=ABOVE_ZERO)
    top_k: int = key(64, "estimator=topk: how many of the teacher's ids are kept", bound=POSITIVE)
    jsd_weight: float = key(0.5, "estimator=jsd: weight of the teacher in the mixture", bound=BETWEEN)
    reward_horizon: str = key("immediate", "estimator=k1_reward: a token's own KL, or that of all that follows",
                              choices=("immediate", "return_to_go"))  # fmt: skip
    reward_placement: str = key("after", "estimator=k1_reward: where the KL joins, before or after group standardisation",
                                choices=("before", "after"))  # fmt: skip
    beta: BetaConfig = section(BetaConfig)


@dataclass
class CorrectionConfig:
    """Correction for the gap between the rollout engine's and the trainer's log-probs."""

    mode: str = key("auto", "ours: auto = token with rollout.engine=vllm, else none",
                    choices=("auto", "none", "token", "sequence", "sequence_mask"))  # fmt: skip
    cap: float = key(2.0, "ours: weights above it are cut to it (sequence_mask: the rollout is left out)", bound=ABOVE_ZERO)
    on_kl: bool = key(True, "the KL term is corrected, too")


@dataclass
class ObjectiveConfig:
    """Stage 2, eq. 5 and 6."""

    arm: str = key("sft_vold", "name of the run in reports")
    policy: PolicyConfig = section(PolicyConfig)
    kl: KLConfig = section(KLConfig)
    correction: CorrectionConfig = section(CorrectionConfig)
    chunk_tokens: int | None = key(None, "tokens that meet the LM heads at a time; null = 512 on a CPU, 2048 on a GPU",
                                   bound=POSITIVE)  # fmt: skip
    kernels: str = key("torch", "who walks over a chunk's logits on a GPU; triton is not measured yet",
                       choices=("torch", "triton"))  # fmt: skip
    skip: bool = key(True, "leave out work that cannot change a gradient (design: the mask is a saving)")

    def tokens_at_once(self, gpu: bool) -> int:
        """``chunk_tokens``, with null made out.  A CPU's buffers should stay small; on a GPU each chunk costs some hundred
        launches, and reads and writes the whole gradient of the LM head."""
        return self.chunk_tokens or (2048 if gpu else 512)
