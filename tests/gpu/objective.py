"""Items ``objective`` and ``head_rate``: the loss without logits, and how fast its matrix products are."""

from __future__ import annotations

import importlib.util

import torch

from benchmarks.measure import Peak
from benchmarks.objective_methods import METHODS, Problem, unavailable
from tests.gpu.place import CPU, FAKE, GPU, Place, relative

FULL = {
    "tokens": 8192, "vocabulary": 151_936, "hidden": 2048, "teacher_hidden": 4096, "chunk": 2048, "estimator": "reverse",
    "dtype": "bf16", "main_grad": True, "kernels": "torch", "tensor": 1,
}  # fmt: skip
SMALL = FULL | {"tokens": 96, "vocabulary": 512, "hidden": 64, "teacher_hidden": 96, "chunk": 32}
COMPARED = 1024  # tokens whose values are compared with dense fp32 logits, over the whole vocabulary
WORKSPACES = 256 << 20  # bytes that libraries' workspaces take, as in rehearsal/findings.py


def settings(place: Place, **changes) -> dict:
    return (SMALL if place.small else FULL) | {"device": place.device.type} | changes


def objective(place: Place) -> None:
    kernels = ["torch", *(["triton"] if _has_triton(place) else [])]
    if "triton" not in kernels:
        place.say(triton_left_out="its kernels need a GPU and the triton package")
    values = {name: _values(place, name) for name in kernels}
    if "triton" in values:
        (logprob, gradients), (other, others) = values["torch"], values["triton"]
        because = "both form fp32 logits and sum them in fp32: 2^-10, far below the rounding to bf16 that both share"
        place.check("triton_logprob_gap", float((logprob - other).abs().max()), because, at_most=1e-3)
        for name, gradient in gradients.items():
            place.check(f"triton_{name}_gap", relative(others[name], gradient), because, at_most=2**-10)
    del values
    _memory_and_time(place, kernels)


def _has_triton(place: Place) -> bool:
    return place.kind != CPU and importlib.util.find_spec("triton") is not None


def _values(place: Place, kernels: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, KL and both gradients against dense fp32 logits, autograd for the rest."""
    p = Problem.make(settings(place, tokens=min(COMPARED, settings(place)["tokens"]), kernels=kernels), 0, None)
    loss, said = _ours(p)
    loss.backward()
    dense, logprob, kl = _dense(p)
    place.check(
        f"{kernels}_logprob_error", float((said.logprob - logprob).abs().max()),
        "nats; fp32 sums of 2,048 products of size 1: some 3e-5; logits that were rounded to bf16 would be off by 4e-2",
        at_most=1e-3,
    )  # fmt: skip
    place.check(f"{kernels}_kl_error", float((said.kl - kl).abs().max()), "nats; as log-probs", at_most=2e-3)
    found = {"hidden_gradient": p.hidden.grad, "head_gradient": p.main_grad}
    for name, gradient in found.items():
        because = "the gradient on the logits is rounded to bf16 before its product, and so is the one on hidden states: 2^-8"
        place.check(f"{kernels}_{name}_error", relative(gradient, dense[name]), because, at_most=2**-8)
    return said.logprob, found


def _ours(p: Problem):
    """(loss, what each token said) of GRPO and the KL in one pass; every token counts and says so."""
    from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, VocabularyShard, vold_loss

    every = torch.ones(len(p.head), dtype=torch.bool, device=p.head.device)
    response = torch.ones(len(p.targets), dtype=torch.bool, device=p.head.device)
    sequence = torch.arange(len(p.targets), device=p.head.device) // 256
    batch = TokenBatch(p.targets, sequence, p.weight, p.weight, torch.ones_like(p.weight), response=response)
    return vold_loss(
        p.hidden, p.head, batch, VocabularyShard(0, len(p.head), every, every),
        Objective(kl=KLTerm(p.estimator), chunk_tokens=p.chunk, kernels=p.kernels),
        teacher=TeacherStates(p.teacher_hidden, p.teacher_head), head_gradient=p.main_grad,
    )  # fmt: skip


def _dense(p: Problem) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """(gradients, log-probs, KL) from whole fp32 logits; inputs are the bf16 values, every product and sum fp32."""
    exact = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    hidden, head = (x.detach().float().requires_grad_() for x in (p.hidden, p.head))
    log_p = torch.log_softmax(hidden @ head.t(), dim=-1)
    with torch.no_grad():
        log_q = torch.log_softmax(p.teacher_hidden.float() @ p.teacher_head.float().t(), dim=-1)
    logprob = log_p.gather(1, p.targets[:, None]).squeeze(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    (p.weight * (kl - (logprob - logprob.detach()).exp())).sum().backward()
    torch.backends.cuda.matmul.allow_tf32 = exact
    return {"hidden_gradient": hidden.grad, "head_gradient": head.grad}, logprob.detach(), kl.detach()


def _memory_and_time(place: Place, kernels: list[str]) -> None:
    """One loss and its gradients over all tokens: ours with torch's operations, with Triton's kernels, dense, Liger's JSD."""
    ours = {name: _measure(place, "ours", kernels=name) for name in kernels}
    dense, dense_seconds = _measure(place, "dense")
    planned = _planned(place)
    for name, (peak, seconds) in ours.items():
        place.check(
            f"{name}_peak_bytes", peak,
            "the planner's formula (planning/activations.py: objective), and workspaces of libraries",
            at_most=planned + WORKSPACES, kind="bytes",
        )  # fmt: skip
        place.say(**{f"{name}_seconds": seconds})
    place.say(dense_peak_bytes=dense, dense_seconds=dense_seconds, planned_bytes=planned)
    if dense:
        three = 3 * 4 * settings(place)["tokens"] * settings(place)["vocabulary"]
        because = "of dense's peak; ours must be below the three fp32 tables [T, V] that no dense KL does without"
        place.check("peak_of_dense", ours["torch"][0] / dense, because, at_most=three / dense, kind="bytes")
    left_out = unavailable("liger", settings(place, device=place.device.type if place.kind == GPU else "cpu"))
    if left_out:
        place.say(liger_left_out=left_out)
    else:
        peak, seconds = _measure(place, "liger", estimator="jsd", main_grad=False)
        place.say(liger_jsd_peak_bytes=peak, liger_jsd_seconds=seconds)
        peak, seconds = _measure(place, "ours", estimator="jsd")
        place.say(jsd_peak_bytes=peak, jsd_seconds=seconds)


def _planned(place: Place) -> int:
    from vold_nemo.planning import activations, memory

    s = settings(place)
    heads = activations.Heads(s["vocabulary"], s["hidden"], s["teacher_hidden"])
    how = memory.Numerics(2, True)
    return activations.objective(heads, s["tokens"], s["chunk"], how, gathered=False, exact=True).peak


def _measure(place: Place, method: str, **changes) -> tuple[int | None, float | None]:
    """(peak bytes beyond inputs and their gradients, seconds) of the second of two; Nones where it does not fit."""
    problem = Problem.make(settings(place, **changes), 0, None)
    form = (lambda p: _ours(p)[0]) if method == "ours" else METHODS[method]
    peaks, seconds = [], []
    try:
        for _ in range(2):
            problem.hidden.grad = problem.head.grad = None
            peak, before = Peak(place.device.type), []
            problem.at_gradients = lambda _, peak=peak, before=before: before.append(peak.stop())
            seconds.append(place.seconds_of(lambda: form(problem).backward()))
            after = peak.stop()
            born = sum(t.grad.nbytes for t in (problem.hidden, problem.head) if t.grad is not None)
            peaks.append(max(after - born, *before, 0))
    except torch.OutOfMemoryError:
        return None, None
    return max(peaks), seconds[-1] if place.kind != FAKE else None


def head_rate(place: Place) -> None:
    """Products of :mod:`vold_nemo.objective.head` over one chunk: seconds against what plain products and copies reach here."""
    from vold_nemo.objective import head

    side = 256 if place.small else 8192
    left, right = (torch.randn(side, side, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * side**3 / place.seconds(lambda: left @ right, 10)
    large = torch.empty((1 << 20) if place.small else (1 << 30), dtype=torch.uint8, device=place.device)
    other = torch.empty_like(large)
    band = 2 * large.numel() / place.seconds(lambda: other.copy_(large), 10)
    real = place.kind != FAKE
    place.say(peak_tflops=peak / 1e12 if real else None, memory_gbs=band / 1e9 if real else None)
    s = settings(place)
    tokens, vocabulary, hidden = s["chunk"], s["vocabulary"], s["hidden"]
    states = torch.randn(tokens, hidden, device=place.device, dtype=torch.bfloat16)
    table = torch.randn(vocabulary, hidden, device=place.device, dtype=torch.bfloat16)
    logits = torch.empty(tokens, vocabulary, device=place.device)
    total = torch.zeros(vocabulary, hidden, device=place.device)
    operations = 2 * tokens * vocabulary * hidden
    # bytes that must move: bf16 operands, fp32 logits once, their bf16 copy written and read, fp32 sums read and written
    weights, wide, narrow = 2 * vocabulary * hidden, 4 * tokens * vocabulary, 2 * tokens * vocabulary
    for name, call, moved in (
        ("logits", lambda: head.project(states, table, logits), weights + wide),
        ("hidden_gradient", lambda: head.hidden_gradient(logits, table), weights + wide + 2 * narrow),
        (
            "head_gradient", lambda: head.add_head_gradient(total, logits, states, False),
            wide + 2 * narrow + 16 * vocabulary * hidden,
        ),
    ):  # fmt: skip
        seconds = place.seconds(call, 5)
        bound = operations / peak + moved / band
        because = (
            "of what its operations at the measured peak and its bytes at the measured rate take, one after the other; as much "
            "again for tiles that do not fill the GPU"
        )
        place.check(f"{name}_time_of_bound", seconds / bound, because, at_most=2.0, kind="rate")
        place.say(**{f"{name}_tflops": operations / seconds / 1e12 if real else None})
