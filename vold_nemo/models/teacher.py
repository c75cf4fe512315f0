"""The teacher: a frozen megatron-core model on the student's ranks, under the student's process groups.

It is not a ``ModelPT`` and is never trained: no gradient buffer, no optimizer state, no DDP wrapper.  It gives final hidden
states, which stay on the rank that made them; its LM head meets them chunk by chunk inside the objective, so that logits
never exist.  Student and teacher read the same micro-batch tensors, hence the same positions and the same padding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vold_nemo.config import TeacherConfig
from vold_nemo.megatron import architecture, build, fp8, precision, sequences, training, weights
from vold_nemo.megatron.host_copy import HostCopy
from vold_nemo.step import MicroBatch

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Teacher:
    """Frozen scorer.

    Args:
        config: where it is and in which precision (:func:`vold_nemo.megatron.precision.choose`).
        layout: the student's; without its virtual stages where they do not divide this model's layers.
        padded_vocabulary: rows of the student's padded LM head, so that shard i of both covers the same ids.
        student_precision: ``fp32`` | ``bf16``.
        source: opens where the weights come from, by ``config.path``.

    Raises:
        ConfigError: a precision that these devices or shapes do not have.
        RuntimeError: FP8 weights that take other bytes than they should.
    """

    def __init__(
        self, config: TeacherConfig, layout, *, padded_vocabulary: int, student_precision: str,
        source: Callable[[str], weights.Source] = weights.Files,
    ):  # fmt: skip
        self.config = config
        self.source = partial(source, config.path)
        self.architecture = architecture.read(config.path)
        self.layout = replace(layout, virtual=self.architecture.virtual(layout.pipeline, layout.virtual))
        if self.layout.virtual < layout.virtual and layout.rank == 0:
            many = f"{layout.pipeline} stages of {layout.virtual} virtual ones"
            logger.info("%s: %d layers are not for %s; it runs without them", config.path, self.architecture.layers, many)
        layout = self.layout
        self.precision = precision.choose(
            config, student_precision, fp8.hardware(layout.device), self.architecture, layout.tensor
        )
        self.model = build.build_model(
            self.architecture, layout, padded_vocabulary=padded_vocabulary, dtype=PRECISIONS[self.precision.dtype],
            trainable=False, held=self.precision,
        )  # fmt: skip
        self._load()
        fp8.assert_held(self.model, self.precision)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())  # on this rank
        self.tokens_scored = 0  # real tokens, padding and other data ranks not counted
        self.resting: HostCopy | None = None
        if config.offload:
            self.resting = HostCopy(self.model, self._load if config.offload_to == "checkpoint" else None)
            self.rest()

    def _load(self) -> None:
        weights.load_hf(self.model, self.architecture, self.layout, self.source())

    def rest(self) -> None:
        """Where ``teacher.offload`` asks for it, leave the device, LM head and all, until the next hidden states."""
        if self.resting:
            self.resting.leave()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """On the device; afterwards, with ``teacher.offload``, only the LM head stays, which the loss will ask for."""
        if self.resting:
            self.resting.come_back()
        yield
        if self.resting:
            self.resting.leave(keep=[self.head] if self.layout.is_last_stage else [])

    @property
    def head(self) -> Tensor:
        """This rank's rows [v, H_teacher] of the LM head; last stage only.  Not there after :meth:`rest`."""
        return build.lm_head_weight(self.model)

    def hidden_states(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """Final hidden states of the scored micro-batches, as the pipeline leaves them: [S (/ T), B, H_teacher].

        One entry for every micro-batch, None where it is unscored or this is not the last stage.  The forward-only schedule
        runs over the scored ones alone.  Collective over the world: the step plan sees to it that either every data rank has
        a scored micro-batch or none has.

        Raises:
            RuntimeError: a hidden state that is not finite, with rank and micro-batch.
        """
        wanted = [index for index, batch in enumerate(batches) if batch.scored]
        found: list[Tensor | None] = [None] * len(batches)
        if not wanted:
            return found
        self.tokens_scored += sum(sum(batches[i].lengths) for i in wanted)

        def keep(hidden: Tensor, batch: MicroBatch, index: int):
            # The schedule wants a scalar; this one is 0, or NaN where a hidden state is not finite.
            return training.summed(hidden.float().sum() * 0.0, hidden)

        with self._awake():
            passed = training.forward_backward(
                self.model, [batches[i] for i in wanted], sequences.through(keep, self.layout), layout=self.layout,
                forward_only=True,
            )
        if passed.non_finite:
            where = "; ".join(str(item) for item in passed.non_finite[:4])
            raise RuntimeError(f"the teacher's hidden states are not finite: {where}; {self.precision.describe()}")
        for index, hidden in zip(wanted, passed.statistics, strict=False):
            found[index] = hidden
        return found

    def probe(self, texts: Sequence[Sequence[int]]) -> str | None:
        """Score the token ids ``texts`` as the teacher is, and again with a few layers in bf16; None where it has no FP8.

        Collective over the world; every rank brings the same texts.

        Raises:
            ConfigError: log-probs that are not finite, or drift above ``teacher.fp8.max_drift``.
        """
        if self.precision.recipe is None or not self.config.fp8.probe_tokens:
            return None
        from vold_nemo.models.fp8_probe import probe

        before, resting = self.tokens_scored, self.resting
        if resting:  # layers are exchanged meanwhile, and a layer that is not in the model would not come back
            resting.come_back()
            self.resting = None
        try:
            return probe(self, texts)
        finally:
            self.tokens_scored, self.resting = before, resting
            self.rest()

    def selected(self, hidden: Tensor, batch: MicroBatch) -> Tensor:
        """[S (/ T), B, H_teacher] -> [n, H_teacher] at the predictions of ``batch``, as the objective wants them."""
        with torch.no_grad():
            return sequences.predicting(hidden, batch.to(hidden.device), self.layout)

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of weights and of gradients on this rank; the second must be 0."""
        gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
        return {"weights": fp8.model_bytes(self.model), "gradients": sum(fp8.tensor_bytes(grad) for grad in gradients)}

    def device_bytes(self) -> int:
        """Bytes of weights on the device now."""
        return self.resting.device_bytes() if self.resting else self.memory_bytes()["weights"]

    def moved(self) -> dict[str, float]:
        """Bytes moved between host and device, and the seconds that took, since the last call; on this rank."""
        return self.resting.said() if self.resting else {}
