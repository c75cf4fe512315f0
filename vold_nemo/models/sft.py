"""Stage 1: supervised fine-tuning on the teacher's own traces (eq. 4), the cold start that makes distillation work.

    L_SFT = - sum over traces and response tokens t of  w * log pi_theta(y_t | q, y_<t),    w = 1 / (tokens of the batch)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from vold_nemo.config import OptimizerConfig
from vold_nemo.data.order import Order
from vold_nemo.data.prefetcher import Prefetcher
from vold_nemo.data.sft_batches import SFTBatch, sft_batch
from vold_nemo.data.token_cache import StoredExamples
from vold_nemo.data.traces import SFTExample
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import sequences
from vold_nemo.megatron.device import peak_bytes
from vold_nemo.megatron.training import forward_backward, summed
from vold_nemo.models import heartbeat
from vold_nemo.models.student import MegatronStudent
from vold_nemo.objective import nll_loss
from vold_nemo.step import MicroBatch


class MegatronSFTModel(MegatronStudent):
    """The student in stage 1.  Call :meth:`attach` before :meth:`fit`."""

    verb = "sft"

    def __init__(self, cfg: DictConfig, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        self.examples: Sequence[SFTExample] = ()

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return self.config.sft.optimizer

    @property
    def total_steps(self) -> int:
        return self.config.sft.steps

    def attach(self, examples: Sequence[SFTExample], contract: VocabularyContract, traces: list[dict] | None = None) -> None:
        """Training data; which ids count in the softmax (those the rollout engine will be able to sample); who wrote it."""
        self.examples = examples
        sources = examples.source_of_each() if isinstance(examples, StoredExamples) else [e.source for e in examples]
        left_out = set(self.config.data.without)  # of a prompt, or of one of its traces: <prompt>/<sample>
        without = [
            i for i, example in enumerate(examples if left_out else ())
            if example.name in left_out or example.name.rpartition("/")[0] in left_out
        ]  # fmt: skip
        self.order = Order(
            len(examples), self.config.sft.batch, self.config.seed, sources=sources,
            mixture=self.config.data.trace_mixture, key="data.trace_mixture", without=without,
        )  # fmt: skip
        self.lineage = {"added_tokens": contract.added_tokens, "traces": traces}
        if self.config.data.without:
            self.lineage["without"] = sorted(self.config.data.without)
        self.batches = Prefetcher(self.cut, self.total_steps)
        self.shard = contract.shard(
            self.layout.tensor_rank, self.layout.tensor, self.layout.device, self.layout.tensor_group
        )

    def data_name(self) -> str:
        if isinstance(self.examples, StoredExamples):
            return self.order.name(self.examples.folder.name)  # a hash of the traces
        return self.order.name(repr([(example.name, len(example.ids)) for example in self.examples]))

    def cut(self, step: int) -> SFTBatch:
        """The global batch of ``step``, and this data rank's share of it, collated; no collective."""
        sft, layout = self.config.sft, self.layout
        return sft_batch(
            self.examples, self.order.indices(step), data_rank=layout.data_rank, data_ranks=layout.data,
            micro_batch=sft.micro_batch, pack_length=(sft.pack_length or sft.max_length) if sft.packing else None,
            sequence_multiple=layout.sequence_multiple, pad_multiple=layout.pad_multiple,
            micro_batch_multiple=layout.micro_batch_multiple,
        )  # fmt: skip

    def get_loss_and_metrics(self, drawn: SFTBatch, micro_batches: Sequence[MicroBatch], *, forward_only: bool):
        """Eq. 4 over this rank's micro-batches of the batch ``drawn``; gradients stay in the DDP buffers."""

        def loss(output: Tensor, batch: MicroBatch, index: int):
            value, _ = nll_loss(
                sequences.predicting(output, batch, self.layout), self.head, batch.targets,
                batch.counts.float() * drawn.weight, self.shard,
                chunk_tokens=self.config.objective.tokens_at_once(output.is_cuda),
                head_gradient=None if forward_only else self.head.main_grad,
            )  # fmt: skip
            return summed(value)

        through = sequences.through(loss, self.layout)
        passed = forward_backward(self.stage, list(micro_batches), through, layout=self.layout, forward_only=forward_only)
        return passed, {"loss": passed.loss, "tokens": drawn.response_tokens}

    def train_step(self, number: int) -> dict[str, Any]:
        """One optimizer step on the global batch of step ``number``."""
        began = time.perf_counter()
        heartbeat.note("data")
        batch = self.batches.get(number)
        micro_batches = self.share(batch.micro_batches, f"the batch of step {number}")
        ready = time.perf_counter()
        heartbeat.note("train")
        passed, metrics = self.get_loss_and_metrics(batch, micro_batches, forward_only=False)
        update = self.optimizer_step(number, passed, self._name_examples(micro_batches))
        trained = time.perf_counter()
        tokens = batch.tokens
        return {
            **metrics,
            "grad_norm": update.grad_norm,
            "learning_rate": update.learning_rate,
            "update_skipped": update.skipped,
            "epoch": self.order.epoch(number + 1),
            "padding_efficiency": tokens / max(1, batch.padded_tokens),
            "micro_batches": {
                "real": len(batch.micro_batches) * self.layout.data - batch.dummies, "dummies": batch.dummies,
            },
            **({"packing_efficiency": batch.fill} if batch.fill is not None else {}),
            "tokens_per_second": tokens / (trained - began),
            "seconds": {"data": ready - began, "train": trained - ready},
            "memory": {"peak_bytes": peak_bytes(self.layout.device)},
        }

    def _name_examples(self, micro_batches):
        def describe(item) -> str:
            if item.micro_batch is None or item.rank != self.layout.rank:
                return str(item)
            rows = micro_batches[item.micro_batch].rows
            return f"{item} (traces {', '.join(self.examples[row].name for row in rows[:4])})"

        return describe
