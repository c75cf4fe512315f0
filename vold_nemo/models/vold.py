"""Stage 2: GRPO and on-policy distillation on the same rollouts, with the KL switched off where the answer is right.

    L_VOLD = L_GRPO + beta * E_{q, tau ~ pi_theta} [ (1 - r(tau)) sum_t KL_t ]                                    (eq. 6)

:meth:`MegatronVOLDModel.train_step` is the method on one screen.  What its phases do is a hop away: rollouts and rewards in
``models/sampling.py``, the plan in ``planning/step_plan.py``, the teacher in ``models/teacher.py``, the mathematics in
``objective/``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vold_nemo.checkpoint import lineage
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import Config, ConfigError, OptimizerConfig
from vold_nemo.data.micro_batch import MicroBatch, collate
from vold_nemo.data.rollouts import Rollout
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import architecture
from vold_nemo.megatron.precision import pad_multiple
from vold_nemo.models.clock import PhaseClock
from vold_nemo.models.handover import handover_of
from vold_nemo.models.rank_checks import whole_responses
from vold_nemo.models.refill import refill
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.selection import Selection, select, shapes_rewards
from vold_nemo.models.step_metrics import StepMetrics
from vold_nemo.models.student import MegatronStudent
from vold_nemo.models.teacher import Teacher
from vold_nemo.models.teachers import Teachers, members
from vold_nemo.objective import (
    BetaSchedule,
    CorrectionTerm,
    KLTerm,
    PolicyTerm,
    TokenBatch,
    TokenStatistics,
    token_logprobs,
    vold_loss,
)
from vold_nemo.rollout.mismatch import MismatchWatch
from vold_nemo.rollout.sync import SyncReport, compare_logprobs, deliver

logger = logging.getLogger(__name__)


class MegatronVOLDModel(MegatronStudent):
    """The student in stage 2.  Call :meth:`attach` before :meth:`fit`."""

    nemo_folders = ("vold.start",)

    def __init__(self, cfg: DictConfig, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        objective = self.config.objective
        policy, kl, correction = objective.policy, objective.kl, objective.correction
        self.policy = PolicyTerm(policy.loss, policy.clip_low, policy.clip_high, policy.dual_clip) if policy.enabled else None
        self.kl = None
        if kl.enabled:
            self.kl = KLTerm(kl.estimator, kl.clamp, kl.top_k, kl.jsd_weight, kl.reward_horizon, not kl.mask_one_sided)
        self.correction = CorrectionTerm(correction_mode(self.config), correction.cap, correction.on_kl)
        self.watch = MismatchWatch(self.config.rollout.mismatch_warning, self.config.rollout.probe_tolerance)
        self.beta = BetaSchedule(kl.beta, self.config.vold.steps)
        check_kernels(objective.kernels, self.layout.device)
        self.teacher: Teacher | None = None

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return self.config.vold.optimizer

    @property
    def total_steps(self) -> int:
        return self.config.vold.steps

    @property
    def updates_per_step(self) -> int:
        return self.config.vold.updates_per_step

    def extra_state(self) -> dict[str, Any]:
        return {"beta": self.beta.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if "beta" in state:  # checkpoints of before do not say
            self.beta.load_state_dict(state["beta"])

    def source_path(self) -> str:
        return self.config.vold.start

    def data_name(self) -> str:
        return self.sampler.data_name()

    def vocabulary_rows(self) -> list[int]:
        rows = super().vocabulary_rows()
        if self.config.objective.kl.enabled and not self._is_model_being_restored():
            rows += [architecture.read(one.path).vocabulary for one in (self.config.teacher, *self.config.teachers.values())]
        return rows

    def attach(
        self, sampler: Sampler, contract: VocabularyContract, teacher: Teacher | Teachers | None, run: Run
    ) -> None:
        """What the loop talks to.  ``teacher`` is None exactly when ``objective.kl.enabled`` is false."""
        self.sampler, self.run = sampler, run
        self.attach_teacher(teacher, contract)
        stage1 = lineage.read(self.config.vold.start).get("traces")
        self.lineage = {"added_tokens": contract.added_tokens, "traces": stage1}
        self.handover = handover_of(self.config, self.stage, self.optimizer_in_training, sampler.engine, teacher)

    def attach_teacher(self, teacher: Teacher | Teachers | None, contract: VocabularyContract) -> None:
        """What :meth:`get_loss_and_metrics` reads besides a batch; enough without a loop around it."""
        if (teacher is None) != (self.kl is None):
            raise ValueError("a teacher is needed with a KL term, and only then")
        self.teacher, self.contract = teacher, contract
        # A forward pass of the teacher in units of the student's forward and backward: 2 against 6 FLOPs a weight.
        own = sum(parameter.numel() for parameter in self.gpt.parameters())
        self.teacher_cost = [member.parameters / (3 * own) for member in members(teacher)] or [0.0]
        self.shard = contract.shard(self.layout.tensor_rank, self.layout.tensor, self.layout.device)

    @property
    def pad_multiple(self) -> int:
        """Of every padded length: what the layout asks for, and on each rank what an FP8 teacher's matrix units do."""
        split = self.layout.pad_multiple
        return math.lcm(split, *(pad_multiple(one.precision, split) for one in members(self.teacher)))

    # -- one step, in the paper's order --------------------------------------------------------------------------------

    def train_step(self, step: int) -> dict[str, Any]:
        """Generate, verify, plan, score, update, sync.  Collective over the world."""
        clock = PhaseClock(self.layout.device, self.handover)
        with clock("generate"):
            rollouts = self.sampler.generate(step)  # K answers a prompt, by the student itself
        with clock("reward"):
            self.sampler.verify(rollouts)  # 1 if the box holds the right answer, else 0
        rollouts = refill(step, rollouts, self.sampler, self.config, self.beta.value(step), clock)  # off in the paper
        selection = select(  # what the teacher scores, what is trained on, where
            rollouts, self.config, self.contract, self.layout,
            eos_ids=self.sampler.engine.stop_ids, teacher_cost=self.teacher_cost, beta=self.beta.value(step),
            pad_multiple=self.pad_multiple,
        )  # fmt: skip
        metrics = StepMetrics(self.layout, rollouts, selection, recorded=self.sampler.records(step + 1))
        updates = [self.micro_batches(update, rollouts) for update in selection.plan.updates]
        with clock("logprobs"):  # of the weights that sampled, where an option needs them after those have moved
            old = self.logprobs(updates) if len(updates) > 1 else None
            shared = self.logprobs(updates, selection) if shapes_rewards(self.config.objective.kl) else None
        for batches, planned in zip(updates, selection.plan.updates, strict=True):
            with clock("teacher"):
                hidden = self.teacher.hidden_states(batches) if self.teacher else [None] * len(batches)
                k1 = self.reweigh(batches, hidden, selection, shared, planned.sampled, step)
            with clock("train"):
                passed, statistics = self.get_loss_and_metrics((batches, hidden, selection, old, k1, step), False)
                gaps = self.probe(rollouts, batches, statistics if old is None else old)
                update = self.optimizer_step(step, passed, self._name_prompts(batches, rollouts))
            metrics.add(passed, statistics, update, batches, gaps)
        if self.teacher:
            self.teacher.rest()  # where teacher.offload asks for it
        with clock("sync"):
            synced = self.sync(step + 1, self.config.rollout.checksum_parts)
        with clock("validate"):
            validation = self.sampler.validate(step + 1)
        if metrics.recorded:
            self.sampler.record(step + 1, rollouts, metrics.fates(), self.run.folder / "rollouts")
        self.own_seconds["generate"] = self.sampler.seconds
        said = metrics.summary(
            beta=self.beta.value(step), seconds=clock.seconds, diagnosis=self.sampler.diagnosis | self.sampler.refilled,
            held=self.handover.held,
        )  # fmt: skip
        said["sync"] = synced.metrics()
        self.warn(step, said["mismatch"])
        return said | validation | ({"teacher_moved": moved} if (moved := self.teacher and self.teacher.moved()) else {})

    def get_loss_and_metrics(self, batch, forward_only: bool):
        """Eq. 6 over this data rank's micro-batches; gradients stay in the DDP buffers, statistics on the last stage."""
        batches, hidden, selection, old, k1, step = batch
        objective = self.config.objective

        def loss(student_hidden: Tensor, micro_batch: MicroBatch, index: int):
            scored = hidden[index] is not None and k1 is None  # a KL that is in the rewards is not in the loss too
            tokens = self.tokens(micro_batch, selection, old, self.beta.value(step) if scored else 0.0)
            value, said = vold_loss(
                student_hidden, self.head, tokens, self.shard, policy=self.policy, kl=self.kl if scored else None,
                teacher_hidden=self.teacher.of(micro_batch).selected(hidden[index], micro_batch) if scored else None,
                teacher_head=self.teacher.of(micro_batch).head if scored else None,
                correction=self.correction, temperature=self.config.rollout.temperature,
                teacher_temperature=objective.kl.teacher_temperature, chunk_tokens=objective.chunk_tokens,
                group=self.layout.tensor_group, context=self.layout.context_group if self.layout.context > 1 else None,
                head_gradient=None if forward_only else self.head.main_grad,
                kernels=objective.kernels,
            )  # fmt: skip
            if k1 is not None and micro_batch.scored:
                self.record_k1(said, micro_batch, selection, k1)
            return value, said

        passed = self.run_schedule(batches, loss, forward_only=forward_only)
        return passed, passed.statistics

    # -- the parts -----------------------------------------------------------------------------------------------------

    def micro_batches(self, update, rollouts: Sequence[Rollout]) -> list[MicroBatch]:
        """This rank's share of one update, collated."""
        return self.share([
            collate(
                [(rollouts[row].ids, len(rollouts[row].prompt_ids)) for row in planned.rows],
                rows=planned.rows, length=planned.length, scored=planned.scored, teacher=planned.teacher,
            )
            for planned in update.ranks[self.layout.data_rank]
        ], "their micro-batches")  # fmt: skip

    def tokens(self, batch: MicroBatch, selection: Selection, old: dict | None, beta: float) -> TokenBatch:
        """Targets, weights and advantages at the trained positions of ``batch``, as the objective reads them."""
        targets, sequence, predicts = batch.predictions()

        def by_row(values: Sequence[float]) -> Tensor:
            rows = torch.tensor([values[row] for row in batch.rows] or [0.0], dtype=torch.float32, device=targets.device)
            return rows[sequence]

        return TokenBatch(
            targets=targets,
            sequence=sequence,
            policy_weight=by_row(selection.plan.policy_weight) * predicts,
            kl_weight=beta * by_row(selection.kl_weight) * selection.kl_tokens(targets, predicts),
            advantages=by_row(selection.advantages),
            old_logprobs=batch.by_token(old) if old is not None else None,
            rollout_logprobs=batch.by_token({row: selection.rollouts[row].logprobs for row in batch.rows}),
            response=predicts,
            position=batch.places(),
        )

    def logprobs(
        self, updates: Sequence[Sequence[MicroBatch]], selection: Selection | None = None
    ) -> dict[int, list[float]]:
        """Log-probs of trained responses under the current weights: a forward-only pass at the sampling temperature.

        With ``selection`` as the KL sees them: of scored rollouts, over the shared ids, 0 where a token carries no KL.  Filled
        on the last pipeline stage, where the loss reads them.
        """
        found: dict[int, list[float]] = {}

        def loss(hidden: Tensor, batch: MicroBatch, index: int):
            targets, _, predicts = batch.predictions()
            logprobs = self.score(
                hidden, self.head, targets, self.config.rollout.temperature,
                self.shard if selection is None else self.shard.over_shared,
                predicts if selection is None else selection.kl_tokens(targets, predicts),
            )  # fmt: skip
            found.update(batch.by_response(logprobs))
            return logprobs.sum(), None

        for batches in updates:
            chosen = [batch for batch in batches if selection is None or batch.scored]
            if chosen:  # as for the teacher: every data rank has a scored micro-batch, or none has
                self.run_schedule(chosen, loss, forward_only=True)
        return whole_responses(found, self.layout)

    def score(self, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, shard, mask: Tensor) -> Tensor:
        """Log-probs [n] of ``targets`` over the ids of ``shard``, without a gradient; 0 outside ``mask``."""
        return token_logprobs(
            hidden, head, targets, shard, temperature=temperature, mask=mask, group=self.layout.tensor_group,
            chunk_tokens=self.config.objective.chunk_tokens,
        )[0]  # fmt: skip

    def reweigh(
        self, batches: Sequence[MicroBatch], hidden: Sequence[Tensor | None], selection: Selection,
        shared: dict[int, list[float]] | None, sampled: int, step: int,
    ) -> dict[int, list[float]] | None:  # fmt: skip
        """What the teacher's log-probs decide before a gradient: a soft mask; advantages of rewards with the KL inside.

        Where the KL is in the rewards (``shared``: the student's log-probs as the KL sees them), returns k1, token by token, of
        each scored rollout.  On the last pipeline stage, which alone reads weights; elsewhere hidden states are None.
        """
        kl, temperature = self.config.objective.kl, self.config.rollout.temperature
        if not kl.enabled or (kl.mask != "perplexity" and shared is None):
            return None
        teacher: dict[int, list[float]] = {}
        for batch, states in zip(batches, hidden, strict=True):
            if states is not None:
                batch = batch.to(states.device)
                targets, _, predicts = batch.predictions()
                logprobs = self.score(
                    self.teacher.of(batch).selected(states, batch), self.teacher.of(batch).head, targets,
                    temperature if kl.teacher_temperature is None else kl.teacher_temperature, self.shard.over_shared,
                    selection.kl_tokens(targets, predicts),
                )  # fmt: skip
                teacher.update(batch.by_response(logprobs))
        teacher = whole_responses(teacher, self.layout)
        if kl.mask == "perplexity":
            selection.soften({row: -sum(values) / selection.kl_length(row) for row, values in teacher.items()})
        if shared is None:
            return None
        bound = torch.inf if kl.clamp is None else kl.clamp
        k1 = {row: [p - q for p, q in zip(shared[row], values, strict=True)] for row, values in teacher.items()}
        sums = {row: sum(min(max(value, -bound), bound) for value in values) for row, values in k1.items()}
        selection.penalise(sums, self.beta.value(step), sampled)
        return k1

    def record_k1(self, said: TokenStatistics, batch: MicroBatch, selection: Selection, k1: dict) -> None:
        """A KL that went into the rewards, in the statistics of the tokens it was formed on."""
        targets, _, predicts = batch.predictions()
        value, bound = batch.by_token(k1).to(said.kl.dtype), self.config.objective.kl.clamp
        said.kl_active = selection.kl_tokens(targets, predicts)
        if bound is not None:
            said.kl_clamped, value = value.abs() > bound, value.clamp(-bound, bound)
        said.kl = value

    def probe(self, rollouts: Sequence[Rollout], batches: Sequence[MicroBatch], trainer) -> dict[int, list[float]]:
        """Engine against trainer on this update's own tokens, before any weight moves: same weights, same log-probs.

        ``trainer``: statistics of the pass (one update a step) or the old log-probs by row.  Returns the trainer's minus the
        engine's, by row, on the last pipeline stage; nothing elsewhere.
        """
        if not self.layout.is_last_stage:
            return {}
        own = trainer
        if not isinstance(trainer, dict):
            said = zip(batches, trainer, strict=True)
            own = {row: logprobs for batch, one in said for row, logprobs in batch.by_response(one.logprob.cpu()).items()}
            own = whole_responses(own, self.layout)
        rows = [row for batch in batches for row in batch.rows]
        if rows:
            engine = [value for row in rows for value in rollouts[row].logprobs]
            compare_logprobs(engine, [value for row in rows for value in own[row]], self.config.rollout.probe_tolerance)
        return {row: [a - b for a, b in zip(own[row], rollouts[row].logprobs, strict=True)] for row in rows}

    def warn(self, step: int, mismatch: dict[str, float]) -> None:
        """Say so where engine and trainer differ more than they use to; all ranks know the same, rank 0 speaks."""
        said = self.watch.look(mismatch)
        if said and self.layout.rank == 0:
            logger.warning("step %d: %s", step + 1, said)

    def sync(self, version: int, parts: int = 1) -> SyncReport:
        """Stream the language model into the engine and check that its live weights are bit for bit those sent."""
        return deliver(self.hf_weights(borrowed=True), self.sampler.engine, version, parts)

    def on_loop_start(self, step: int) -> None:
        self.sync(version=step)
        if step == 0 and (before := self.sampler.validate(0)):  # where the curves of the validation begin
            self.run.log(0, before)

    def save_checkpoint(self, *args, **kwargs) -> None:
        self.handover.enter("checkpoint")
        super().save_checkpoint(*args, **kwargs)

    def progress_text(self, metrics: dict[str, Any]) -> str:
        return f"reward {metrics['reward_mean']:.3f} kl {metrics['kl_mean']:.3f} entropy {metrics['entropy']:.3f}"

    def _name_prompts(self, batches, rollouts):
        def describe(item) -> str:
            if item.micro_batch is None or item.rank != self.layout.rank:
                return str(item)
            names = {self.sampler.name(rollouts[row]) for row in batches[item.micro_batch].rows}
            return f"{item} (prompts {', '.join(sorted(names)[:4])})"

        return describe


def correction_mode(config: Config) -> str:
    """``objective.correction.mode``, with ``auto`` made out: `token` where another program samples than trains."""
    mode = config.objective.correction.mode
    if mode == "auto":
        mode = "token" if config.rollout.engine == "vllm" else "none"
    return mode


def check_kernels(kernels: str, device: torch.device) -> None:
    """Raises a ConfigError where ``objective.kernels=triton`` cannot run."""
    if kernels == "triton" and (device.type != "cuda" or find_spec("triton") is None):
        mend = "install triton, or leave objective.kernels at torch"
        raise ConfigError("objective.kernels", kernels, "torch, or triton on a GPU with the triton package", mend)
