"""The whole teacher in FP8 against the same teacher in bf16, on given traces: what recipes/teacher_drift.py reports.

    tokens     KL(bf16 || fp8) over the vocabulary at every response token, and whether both rank the same id first
    layers     each FP8 layer on the bf16 model's own input: |fp8 - bf16| over what the layer adds to the residual stream
    gradient   cosine of the student's two distillation gradients, all parameters, every trace taken for wrong (mask 1)

Both teachers are on the ranks at once, in the layout of the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from vold_nemo.config import BetaConfig, Config
from vold_nemo.data.traces import SFTExample
from vold_nemo.megatron.chunks import chunks_of
from vold_nemo.models.columns import counts_here
from vold_nemo.models.drift import token_drift, vocabulary_shard
from vold_nemo.models.rank_checks import planned_once
from vold_nemo.models.teacher import Teacher
from vold_nemo.models.teachers import Teachers
from vold_nemo.step import Step, select


@dataclass
class Drift:
    """Beside the columns ``drift`` and ``same_top`` of the traces' table."""

    layers: list[float]  # relative error, first layer first
    cosine: float
    norm_ratio: float  # |gradient with fp8| / |gradient with bf16|


def distillation_only(config: Config) -> Config:
    """``config`` for the gradient: the KL term alone, on every trace, with weight 1, without corrections for an engine.

    ``k1_reward`` is no loss of its own; k2, whose expected gradient is the same, stands in for it.
    """
    objective = config.objective
    estimator = "k2" if objective.kl.estimator == "k1_reward" else objective.kl.estimator
    kl = replace(
        objective.kl, enabled=True, mask="none", beta=BetaConfig(value=1.0), estimator=estimator,
        reward_placement="after", reward_horizon="immediate",
    )  # fmt: skip
    policy = replace(objective.policy, enabled=False, advantage="centred")
    correction = replace(objective.correction, mode="none")
    return replace(
        config, teachers={}, teacher=replace(config.teacher, offload=False),
        objective=replace(objective, kl=kl, policy=policy, correction=correction),
        rollout=replace(config.rollout, samples_per_prompt=1),
        vold=replace(config.vold, updates_per_step=1, optimizer=replace(config.vold.optimizer, distributed=False)),
    )  # fmt: skip


def as_step(examples: Sequence[SFTExample]) -> Step:
    """Traces as if the student had sampled them; the log-probs are read by nothing that :func:`distillation_only` leaves on."""
    responses = [example.ids[example.prompt_length :].tolist() for example in examples]
    step = Step.of([example.ids[: example.prompt_length].tolist() for example in examples], responses)
    step["engine"], step["reward"] = 0.0, 0.0
    return step


def measure(model, fp8: Teacher, bf16: Teacher, step: Step) -> Drift:
    """Score the traces of ``step`` with both teachers.  Collective over the world; the result is every rank's.

    Args:
        model: a stage 2 student, built from :func:`distillation_only` and ready to train; its weights do not move.
        step: of :func:`as_step`; gets its plan, and the columns ``drift`` and ``same_top``.
    """
    layout = model.layout
    select(step, model.options, beta=1.0)
    plan = planned_once(step, model.options)
    batches = model.micro_batches(step, plan.updates[0])
    with layers_compared(bf16.model, fp8.model, fp8.precision.backend == "te") as errors:
        exact = bf16.hidden_states(batches)
    rounded = fp8.hidden_states(batches)
    shard = None
    for batch, a, b in zip(batches, rounded, exact, strict=True):
        if a is None or not batch.rows:
            continue
        head = bf16.head
        shard = shard or vocabulary_shard(layout, fp8.architecture.vocabulary, len(head) * layout.tensor)
        drift = token_drift(
            fp8.selected(a, batch), bf16.selected(b, batch), head, batch.targets.to(layout.device), shard,
            chunk_tokens=model.config.objective.tokens_at_once(head.is_cuda),
        )  # fmt: skip
        step.put(batch, "drift", drift.kl.cpu())
        step.put(batch, "same_top", drift.same_top.cpu())
    first, second = (gradient(model, teacher, step, batches, hidden) for teacher, hidden in ((bf16, exact), (fp8, rounded)))
    mine = torch.zeros(len(step), dtype=torch.bool)
    mine[plan.rows(layout.data_rank)] = counts_here(layout)
    step.complete(["drift", "same_top"], mine)
    return Drift(relative_errors(errors), *compare(first, second, layout))


@contextlib.contextmanager
def layers_compared(bf16: torch.nn.Module, fp8: torch.nn.Module, engine: bool):
    """While ``bf16`` runs, each layer's input goes through ``fp8``'s layer too; yields {layer: [error², update²]}."""
    sums: dict[int, torch.Tensor] = {}

    def compare_layer(twin):
        def hook(layer, args, kwargs, output):
            if engine:
                from megatron.core.fp8_utils import get_fp8_context

                context = get_fp8_context(fp8.config, twin.layer_number - 1)
            else:
                context = contextlib.nullcontext()
            with context:
                other = twin(*args, **kwargs)[0]
            exact, before = output[0].double(), (args[0] if args else kwargs["hidden_states"]).double()
            both = torch.stack([(other.double() - exact).square().sum(), (exact - before).square().sum()])
            sums[layer.layer_number] = sums.get(layer.layer_number, 0) + both

        return hook

    def layers(model):
        return (layer for chunk in chunks_of(model) for layer in chunk.decoder.layers)

    pairs = zip(layers(bf16), layers(fp8), strict=True)
    hooks = [layer.register_forward_hook(compare_layer(twin), with_kwargs=True) for layer, twin in pairs]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def gradient(model, teacher: Teacher, step: Step, batches, hidden) -> list[torch.Tensor]:
    """Copies of the student's gradients (this rank's shards) with ``teacher``'s hidden states in the KL."""
    model.teachers = Teachers(teacher)
    passed = list(hidden)  # it is given up, one by one
    model.get_loss_and_metrics(step.to(model.layout.device), batches, passed, beta=1.0, forward_only=False)
    return [parameter.main_grad.clone() for parameter in counted(model)]


def counted(model) -> list[torch.nn.Parameter]:
    """Parameters of this rank that no other rank of the model copy holds as well."""
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate

    return [
        p for p in model.stage.parameters()
        if p.requires_grad and param_is_not_tensor_parallel_duplicate(p) and not getattr(p, "shared", False)
    ]  # fmt: skip


def compare(first: list[torch.Tensor], second: list[torch.Tensor], layout) -> tuple[float, float]:
    """(cosine, |second| / |first|) over all shards.  One all-reduce over the model's ranks."""
    sums = torch.zeros(3, dtype=torch.float64, device=layout.device)
    for a, b in zip(first, second, strict=True):
        a, b = a.double(), b.double()
        sums += torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])
    dist.all_reduce(sums, group=layout.model_group)
    product, own, other = sums.tolist()
    return product / max(own * other, 1e-300) ** 0.5, (other / max(own, 1e-300)) ** 0.5


def relative_errors(errors: dict[int, torch.Tensor]) -> list[float]:
    """Of each layer, from every rank's sums; what two ranks found alike cancels in the ratio.  An object all-gather."""
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, {number: both.tolist() for number, both in errors.items()})
    sums: dict[int, list[float]] = {}
    for layers in everywhere:
        for number, (error, update) in layers.items():
            total = sums.setdefault(number, [0.0, 0.0])
            total[0] += error
            total[1] += update
    return [(error / max(update, 1e-300)) ** 0.5 for _, (error, update) in sorted(sums.items())]


def summary(drift: Drift, step: Step, names: Sequence[str], tokenizer, worst: int) -> dict:
    """``drift.json``: means, quantiles, the worst tokens with what stands before them, the layers."""
    at = (~step["drift"].isnan()).nonzero().flatten()
    kl, same = step["drift"][at].double(), step["same_top"][at].double()
    order = kl.argsort(descending=True)[:worst]
    row_of = step.of_each_token()
    quantiles = torch.quantile(kl[:: max(1, len(kl) // 1_000_000)], torch.tensor([0.5, 0.9, 0.99, 0.999], dtype=torch.float64))

    def told(index: int) -> dict:
        row = int(row_of[at[index]])
        position = int(at[index] - step.responses.offsets[row])
        before = step.sequence(row)[: len(step.prompts[row]) + position][-24:]
        return {
            "trace": names[row], "position": position, "token": tokenizer.decode(step.responses[row][position : position + 1]),
            "before": tokenizer.decode(before), "kl": kl[index].item(), "same_first_choice": bool(same[index]),
        }  # fmt: skip

    return {
        "traces": len(row_of[at].unique()), "tokens": len(kl), "kl_mean": kl.mean().item(), "kl_max": kl.max().item(),
        "kl_quantiles": dict(zip(("0.5", "0.9", "0.99", "0.999"), quantiles.tolist(), strict=True)),
        "same_first_choice": same.mean().item(), "gradient_cosine": drift.cosine, "gradient_norm_ratio": drift.norm_ratio,
        "layers": drift.layers, "worst_tokens": [told(index) for index in order.tolist()],
    }  # fmt: skip
