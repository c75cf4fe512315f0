"""The configuration's objective in the objective's and the table's own words."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from vold_nemo.config import Config, ConfigError
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.objective import CorrectionTerm, KLTerm, Objective, PolicyTerm
from vold_nemo.step import StepOptions


def objective_of(config: Config, device: torch.device) -> Objective:
    """Eq. 6 as ``objective.*`` has it.  Raises ConfigError where ``objective.kernels=triton`` cannot run."""
    wanted = config.objective
    policy, kl, correction = wanted.policy, wanted.kl, wanted.correction
    if wanted.kernels == "triton" and (device.type != "cuda" or find_spec("triton") is None):
        mend = "install triton, or leave objective.kernels at torch"
        raise ConfigError("objective.kernels", wanted.kernels, "torch, or triton on a GPU with the triton package", mend)
    return Objective(
        policy=PolicyTerm(policy.loss, policy.clip_low, policy.clip_high, policy.dual_clip) if policy.enabled else None,
        kl=KLTerm(kl.estimator, kl.clamp, kl.top_k, kl.jsd_weight, kl.reward_horizon, not kl.mask_one_sided)
        if kl.enabled else None,
        correction=CorrectionTerm(correction_mode(config), correction.cap, correction.on_kl),
        temperature=config.rollout.temperature, teacher_temperature=kl.teacher_temperature,
        chunk_tokens=wanted.tokens_at_once(device.type == "cuda"), kernels=wanted.kernels,
    )  # fmt: skip


def correction_mode(config: Config) -> str:
    """``objective.correction.mode``, with ``auto`` made out: `token` where another program samples than trains."""
    mode = config.objective.correction.mode
    if mode == "auto":
        mode = "token" if config.rollout.engine == "vllm" else "none"
    return mode


def step_options(
    config: Config, contract: VocabularyContract, layout, *, eos_ids: Sequence[int], teacher_cost: Sequence[float],
    pad_multiple: int,
) -> StepOptions:  # fmt: skip
    """What decides a step under ``config`` and ``layout``."""
    policy, kl, vold = config.objective.policy, config.objective.kl, config.vold
    return StepOptions(
        shared=contract.shared, eos_ids=tuple(eos_ids),
        policy=policy.enabled, advantage=policy.advantage, std_correction=policy.std_correction,
        std_delta=policy.std_delta, policy_average=policy.average,
        kl=kl.enabled, mask=kl.mask, mask_one_sided=kl.mask_one_sided, mask_eos=kl.mask_eos, kl_average=kl.average,
        clamp=kl.clamp, kl_in_rewards=kl.enabled and kl.estimator == "k1_reward" and kl.reward_placement == "before",
        skip=config.objective.skip, max_tokens=config.rollout.max_tokens, overlong=config.rollout.overlong,
        updates=vold.updates_per_step, micro_batch_tokens=vold.micro_batch_tokens, data_ranks=layout.data,
        pad_multiple=pad_multiple, expert_parallel=config.parallel.expert, teacher_cost=tuple(teacher_cost),
        micro_batch_multiple=layout.micro_batch_multiple,
    )  # fmt: skip
