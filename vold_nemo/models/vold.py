"""Stage 2: GRPO and on-policy distillation on the same rollouts, with the KL switched off where the answer is right.

    L_VOLD = L_GRPO + beta * E_{q, tau ~ pi_theta} [ (1 - r(tau)) sum_t KL_t ]                                    (eq. 6)

:meth:`MegatronVOLDModel.train_step` is the method on one screen: each phase reads columns of one table (``step/table.py``) and
writes another.  A hop away: rollouts and rewards in ``models/sampling.py``, what is scored and trained on in ``step/``, the
teacher in ``models/teacher.py``, the mathematics in ``objective/``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vold_nemo.checkpoint import lineage
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import OptimizerConfig
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import architecture, sequences
from vold_nemo.megatron.device import peak_bytes
from vold_nemo.megatron.exchange import Exchange
from vold_nemo.megatron.precision import pad_multiple
from vold_nemo.megatron.training import forward_backward, summed
from vold_nemo.models import columns
from vold_nemo.models.clock import PhaseClock
from vold_nemo.models.handover import handover_of
from vold_nemo.models.rank_checks import largest_of_ranks, planned_once
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.student import MegatronStudent
from vold_nemo.models.teachers import Teachers
from vold_nemo.models.terms import objective_of, step_options
from vold_nemo.objective import BetaSchedule, vold_loss
from vold_nemo.rewards.alarms import Bell
from vold_nemo.rollout.mismatch import MismatchWatch, tolerance_of
from vold_nemo.rollout.sync import SyncReport, compare_logprobs, deliver
from vold_nemo.step import MicroBatch, Step, StepPlan, batch_of, select, silent_groups, token_batch
from vold_nemo.step.metrics import step_metrics, trainers

logger = logging.getLogger(__name__)


class MegatronVOLDModel(MegatronStudent):
    """The student in stage 2.  Call :meth:`attach` before :meth:`fit`."""

    verb = "vold"
    nemo_folders = ("vold.start",)

    def __init__(self, cfg: DictConfig, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        self.objective = objective_of(self.config, self.layout.device)
        self.beta = BetaSchedule(self.config.objective.kl.beta, self.config.vold.steps)
        self.tolerance = tolerance_of(self.config)
        self.watch = MismatchWatch(self.config.rollout.mismatch_warning, self.tolerance)
        self.bell = Bell()
        self._exchange: Exchange | None = None  # made at the first sync: only then the engine is known

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

    def data_names(self) -> list[str]:
        return [self.data_name(), self.sampler.former_data_name()]

    def vocabulary_rows(self) -> list[int]:
        rows = super().vocabulary_rows()
        if self.config.objective.kl.enabled and not self._is_model_being_restored():
            rows += [architecture.read(one.path).vocabulary for one in (self.config.teacher, *self.config.teachers.values())]
        return rows

    def attach(self, sampler: Sampler, contract: VocabularyContract, teachers: Teachers, run: Run) -> None:
        """What the loop talks to.  There are ``teachers`` exactly when ``objective.kl.enabled``."""
        self.sampler, self.run = sampler, run
        self.attach_teachers(teachers, contract, eos_ids=sampler.engine.stop_ids)
        stage1 = lineage.read(self.config.vold.start).get("traces")
        self.lineage = {"added_tokens": contract.added_tokens, "traces": stage1}
        if self.config.data.without:
            self.lineage["without"] = sorted(self.config.data.without)
        self.handover = handover_of(self.config, self.stage, self.optimizer_in_training, sampler.engine, teachers)

    def attach_teachers(self, teachers: Teachers, contract: VocabularyContract, eos_ids: Sequence[int] = ()) -> None:
        """What a plan and :meth:`get_loss_and_metrics` read besides a step; enough without a loop around them."""
        if bool(teachers) != (self.objective.kl is not None):
            raise ValueError("a teacher is needed with a KL term, and only then")
        self.teachers, self.contract = teachers, contract
        # A forward pass of the teacher in units of the student's forward and backward: 2 against 6 FLOPs a weight.
        own = sum(parameter.numel() for parameter in self.gpt.parameters())
        self.options = step_options(
            self.config, contract, self.layout, eos_ids=eos_ids,
            teacher_cost=[member.parameters / (3 * own) for member in teachers.members] or [0.0],
            # what the layout asks for, and on each rank what an FP8 teacher's matrix units do
            pad_multiple=math.lcm(
                self.layout.pad_multiple,
                *(pad_multiple(member.precision, self.layout.pad_multiple) for member in teachers.members),
            ),
        )  # fmt: skip
        self.shard = contract.shard(
            self.layout.tensor_rank, self.layout.tensor, self.layout.device, self.layout.tensor_group
        )

    # -- one step, in the paper's order --------------------------------------------------------------------------------

    def train_step(self, number: int) -> dict[str, Any]:
        """Generate, verify, select, fill columns, train, sync.  Collective over the world."""
        phase, beta = PhaseClock(self.layout.device, self.handover), self.beta.value(number)
        step, report = self.sampler.sample(  # K answers a prompt, by the student itself; 1 if the box is right, else 0
            number, phase, silent=lambda step: silent_groups(step, self.options, beta)
        )
        select(step, self.options, beta)  # advantages; the mask 1 - r
        plan = self.plan(step)  # what the teacher scores, what is trained on, where
        updates = [self.micro_batches(step, ranks) for ranks in plan.updates]
        step, losses, said, done = step.to(self.layout.device), 0.0, [], []
        with phase("logprobs"):  # of the weights that sampled, where an option needs them after those have moved
            columns.fill_logprobs(self, step, updates)
        for batches, sampled in zip(updates, plan.sampled, strict=True):
            with phase("teacher"):
                hidden = self.teachers.hidden_states(batches)
                columns.fill_teacher(self, step, batches, hidden, factor=beta * sampled)
            with phase("train"):
                passed, statistics = self.get_loss_and_metrics(step, batches, hidden, beta=beta, forward_only=False)
                self.probe(step, batches)
                done.append(self.optimizer_step(number, passed, self._name_prompts(step, batches)))
            losses, said = losses + passed.loss, said + statistics
            del hidden  # before the engine wakes
        self.teachers.rest()  # where teacher.offload asks for it
        with phase("sync"):
            synced = self.sync(number + 1, self.config.rollout.checksum_parts)
        with phase("validate"):
            validation = self.sampler.validate(number + 1)
        totals = columns.complete(step, said, plan.rows(self.layout.data_rank), self.layout)
        if self.sampler.records(number + 1):
            self.sampler.record(number + 1, step, self.run.folder / "rollouts")
        self.own_seconds["generate"] = report.pop("own_seconds")
        metrics = {
            "loss": losses / len(done),  # mean over the step's updates
            **step_metrics(step, plan, totals, self.options),
            **report,
            "grad_norm": done[-1].grad_norm,
            "learning_rate": done[-1].learning_rate,
            "updates_skipped": sum(update.skipped for update in done),
            "beta": beta,
            "tokens_per_second": len(step.responses.flat) / sum(phase.seconds.values()),
            "seconds": phase.seconds,
            "memory": largest_of_ranks(peak_bytes(self.layout.device), self.handover.held, self.layout.device),
            "sync": synced.metrics(),
        }
        self.warn(number, metrics)
        return metrics | validation | ({"teacher_moved": moved} if (moved := self.teachers.moved()) else {})

    def get_loss_and_metrics(
        self, step: Step, batches: Sequence[MicroBatch], hidden: list[Tensor | None], *, beta: float, forward_only: bool
    ):
        """Eq. 6 over this data rank's micro-batches; gradients stay in the DDP buffers, statistics on the last stage.

        ``hidden``: the teacher's, by micro-batch; each is taken out, and so freed, once its loss is formed.
        Writes the columns ``kl`` and, where no ``old`` stands, ``trainer``.
        """

        def loss(output: Tensor, batch: MicroBatch, index: int):
            states, hidden[index] = hidden[index], None  # gradients are formed with the loss: nothing needs it afterwards
            scored = states is not None and not self.options.kl_in_rewards  # else the KL is not in the loss too
            value, said = vold_loss(
                sequences.predicting(output, batch, self.layout), self.head,
                token_batch(step, batch, beta if scored else 0.0), self.shard,
                self.objective if scored else replace(self.objective, kl=None),
                teacher=self.teachers.states(states, batch) if scored else None,
                context=self.layout.context_group if self.layout.context > 1 else None,
                head_gradient=None if forward_only else self.head.main_grad,
            )  # fmt: skip
            columns.record(step, batch, said, self.options)
            return summed(value, said)

        passed = forward_backward(
            self.stage, list(batches), sequences.through(loss, self.layout), layout=self.layout, forward_only=forward_only
        )
        return passed, passed.statistics

    def plan(self, step: Step) -> StepPlan:
        """Rank 0's, on every rank; writes the columns of :data:`vold_nemo.step.plan.WRITTEN`."""
        return planned_once(step, self.options)

    def micro_batches(self, step: Step, ranks) -> list[MicroBatch]:
        """This rank's share of one update, collated."""
        return self.share([batch_of(step, planned) for planned in ranks[self.layout.data_rank]], "their micro-batches")

    def probe(self, step: Step, batches: Sequence[MicroBatch]) -> None:
        """Engine against trainer on this update's own tokens, before any weight moves: same weights, same log-probs."""
        at = torch.cat([batch.token[batch.counts] for batch in batches]).to(step.device)
        if self.layout.is_last_stage and len(at):
            compare_logprobs(step["engine"][at], trainers(step)[at], self.tolerance)

    # -- around a step -------------------------------------------------------------------------------------------------

    def warn(self, number: int, metrics: dict[str, Any]) -> None:
        """Say so where engine and trainer differ more than they use to, or the rewards teach nothing; all ranks know the same,
        rank 0 speaks."""
        differs = self.watch.look(metrics["mismatch"])
        for said in ([differs] if differs else []) + self.bell.ring(number + 1, metrics):
            if self.layout.rank == 0:
                logger.warning("step %d: %s", number + 1, said)

    def sync(self, version: int, parts: int = 1) -> SyncReport:
        """Stream the language model into the engine and check that its live weights are bit for bit those sent."""
        return deliver(self.engine_weights(), self.sampler.engine, version, parts)

    def engine_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name on disk, what this rank's engine keeps of the tensor); collective, every rank must exhaust it."""
        if self._exchange is None:
            engine = self.sampler.engine
            self._exchange = Exchange(self.gpt, self.architecture, self.layout, engine.keeps, engine.room)
        return self._exchange.stream()

    def on_loop_start(self, number: int) -> None:
        phase, before = PhaseClock(self.layout.device, self.handover), {}  # the engine may sleep since before there was a model
        with phase("sync"):
            self.sync(version=number)
        if number == 0:
            with phase("validate"):
                before = self.sampler.validate(0)
        if before:  # where the curves of the validation begin
            self.run.log(0, before)

    def make_way(self) -> None:
        self.handover.enter("checkpoint")

    def progress_text(self, metrics: dict[str, Any]) -> str:
        return f"reward {metrics['reward_mean']:.3f} kl {metrics['kl_mean']:.3f} entropy {metrics['entropy']:.3f}"

    def _name_prompts(self, step: Step, batches: Sequence[MicroBatch]):
        def describe(item) -> str:
            if item.micro_batch is None or item.rank != self.layout.rank:
                return str(item)
            names = {self.sampler.name(step, row) for row in batches[item.micro_batch].rows}
            return f"{item} (prompts {', '.join(sorted(names)[:4])})"

        return describe
