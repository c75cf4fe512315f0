"""AdamW through megatron-core, and the learning rate over steps.

The optimizer is megatron-core's: with plain parameters it is torch's (or Transformer Engine's, or apex's fused) AdamW
behind ``FP32Optimizer``, or ``Float16OptimizerWithFloat16Params`` with fp32 master weights where the model is bf16;
``optimizer.distributed=true`` shards its state over the data-parallel ranks instead (``DistributedOptimizer``).
Weight decay touches matrices only: biases and norm gains (one-dimensional parameters) are left alone, as Megatron does.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from vold_nemo.config import OptimizerConfig
from vold_nemo.megatron import versions
from vold_nemo.megatron.chunks import chunks_of

logger = logging.getLogger(__name__)


def build_optimizer(config: OptimizerConfig, model):
    """megatron-core's optimizer over the trainable parameters of ``model`` (as wrapped by ``training.wrap_ddp``).

    Collective: every rank of the world takes part (parameter groups are made alike everywhere).  Adam's state is
    allocated here and not at the first step, so that a checkpoint written or read before any update is complete, and
    so that a run that does not fit fails now.
    """
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.utils import get_model_config

    bf16 = get_model_config(chunks_of(model)[0]).bf16
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            decoupled_weight_decay=True,
            lr=config.learning_rate,
            min_lr=config.min_learning_rate,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_eps=config.epsilon,
            clip_grad=config.clip_grad,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=config.distributed,
        ),
        chunks_of(model),
        use_gloo_process_groups=False,
    )
    fill_state(optimizer)
    return optimizer


def fill_state(optimizer) -> None:
    """Give every parameter its Adam state, each with a ``step`` tensor of its own.

    megatron-core's own initialiser leaves ``step`` out, which torch's AdamW then looks up in vain; and what
    ``DistributedOptimizer`` reads back is one ``step`` tensor shared by all parameters, on which AdamW counts N updates
    at a time.  TE's and apex's FusedAdam count in the parameter group and need neither.
    """
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        if inner is None:
            continue
        counts_in_state = _counts_in_state(inner)
        for group in inner.param_groups:
            for parameter in group["params"]:
                state = inner.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter.data)
                if counts_in_state:
                    state["step"] = torch.tensor(float(state.get("step", 0.0)), dtype=torch.float32)


def _counts_in_state(inner) -> bool:
    """Whether this is torch's own Adam, which keeps its count of updates with each parameter."""
    return type(inner).__module__.startswith("torch.optim")


def steps_taken(optimizer) -> float:
    """Updates that AdamW has made: what its bias correction counts (0 where it counts in the parameter groups)."""
    for part in optimizer.chained_optimizers:
        for state in part.optimizer.state.values() if part.optimizer is not None else ():
            return float(state.get("step", 0.0))
    return 0.0


def load_state(optimizer, state, steps: float) -> None:
    """``optimizer.load_state_dict(state)``, with AdamW's count of updates set to ``steps`` in every parameter.

    megatron-core's plain optimizers leave a count of 0 out of what they write: it is handed over here.
    """
    many = len(optimizer.chained_optimizers) > 1
    for index, part in enumerate(optimizer.chained_optimizers):
        saved = state[index] if many else state
        saved = saved.get("optimizer", saved)
        versions.recognise(saved.get("param_groups", []), part.config)
        if "state" in saved and part.optimizer is not None and _counts_in_state(part.optimizer):
            saved["state"].setdefault("common_step", torch.tensor(float(steps)))
    optimizer.load_state_dict(state)
    fill_state(optimizer)
    for part in optimizer.chained_optimizers:
        for entry in part.optimizer.state.values() if part.optimizer is not None else ():
            if "step" in entry:
                entry["step"] = torch.tensor(float(steps), dtype=torch.float32)


class LearningRate:
    r"""Learning rate as a function of the step, for all parameter groups, with the position kept for the checkpoint.

    With :math:`w` warm-up steps of :math:`T` and peak :math:`\eta`, the update number :math:`t = 0, 1, \dots` uses

    .. math::
        \eta_t = \eta\,\frac{t+1}{w} \;(t < w), \qquad
        \eta_t = \eta_{min} + (\eta - \eta_{min})\,f\!\left(\frac{t - w}{T - w}\right) \;(t \ge w)

    with :math:`f(p) = 1` (constant), :math:`1 - p` (linear), :math:`\tfrac12(1 + \cos \pi p)` (cosine); past :math:`T`
    the rate stays where it ended.  The first update is never wasted on a rate of zero.
    """

    def __init__(self, config: OptimizerConfig, steps: int):
        self.config = config
        self.total = steps  # optimizer updates of the whole run
        self.warmup = config.warmup_steps
        self.position = 0

    def value(self, position: int) -> float:
        peak, floor = self.config.learning_rate, self.config.min_learning_rate
        if position < self.warmup:
            return peak * (position + 1) / self.warmup
        progress = min(1.0, (position - self.warmup) / max(1, self.total - self.warmup))
        shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
        return floor + (peak - floor) * shape[self.config.schedule]

    def apply(self, optimizer) -> float:
        """Write this position's rate (and each group's weight decay) into the optimizer; returns the rate."""
        rate = self.value(self.position)
        for group in optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = self.config.weight_decay * group["wd_mult"]
        return rate

    def advance(self) -> None:
        self.position += 1

    def _shape(self) -> dict[str, Any]:
        return {
            "schedule": self.config.schedule, "learning_rate": self.config.learning_rate,
            "min_learning_rate": self.config.min_learning_rate, "warmup": self.warmup, "total": self.total,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the saved position.  A schedule configured otherwise than before is obeyed, and said aloud."""
        changed = {k: (state[k], v) for k, v in self._shape().items() if state[k] != v}
        for name, (before, now) in changed.items():
            logger.warning("resumed with another learning-rate schedule: %s was %s, is %s", name, before, now)
        self.position = state["position"]
