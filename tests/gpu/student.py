"""Item ``bf16_step``: loss and gradients of the student in bf16 here, beside fp32 and bf16 on this machine's CPU.

    CUDA_VISIBLE_DEVICES= python -m tests.gpu.student FILE fp32     # the reference, in a process that sees no GPU

megatron-core computes on a GPU wherever it sees one, and so the reference has a process of its own.  Both draw the same
weights, tokens and teacher.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.gpu import drawn
from tests.gpu.place import Place, relative

KINDS = {  # of gradients, by the end of a tensor's Hugging Face name
    "embedding and head": r"embed_tokens|lm_head", "norms": r"norm\.weight$", "attention biases": r"[qkv]_proj\.bias$",
    "query, key, value": r"[qkv]_proj\.weight$", "attention output": r"o_proj\.weight$", "gate and up": r"(gate|up)_proj",
    "down": r"down_proj",
}  # fmt: skip
LENGTHS = (192, 255, 131, 160)
PROMPT, PADDED, TEACHER_HIDDEN = 32, 256, 384
FLOOR = 2**-8  # what bf16 may do to a single value


def gradients(device: str, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and fp32 gradients, by Hugging Face name, of one VOLD update over two micro-batches, one of them with a teacher."""
    from vold_nemo.megatron import build, parallel, training, weights
    from vold_nemo.megatron.sequences import predicting, through
    from vold_nemo.models.drift import vocabulary_shard
    from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, vold_loss
    from vold_nemo.step import collate

    layout = parallel.initialize(1, 1, seed=0, device=device)
    with tempfile.TemporaryDirectory() as folder:
        source = drawn.Drawn(drawn.write_config(Path(folder) / "student", drawn.STUDENT))
    arch = source.architecture
    model = build.build_model(arch, layout, padded_vocabulary=arch.vocabulary, dtype=dtype)
    weights.load_hf(model, arch, layout, source)
    stage = training.wrap_ddp(model)
    draw = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, arch.vocabulary, (length,), generator=draw).tolist() for length in LENGTHS]
    batches = [
        collate([(ids[row], PROMPT) for row in rows], rows=rows, length=PADDED, scored=scored)
        for rows, scored in (((0, 1), True), ((2, 3), False))
    ]  # fmt: skip
    total = sum(LENGTHS) - len(LENGTHS) * PROMPT
    teacher_head = (torch.randn(arch.vocabulary, TEACHER_HIDDEN, generator=draw) * 2 * TEACHER_HIDDEN**-0.5).bfloat16()
    states = torch.randn(int(batches[0].counts.sum()), TEACHER_HIDDEN, generator=draw).bfloat16()
    shard, head = vocabulary_shard(layout, arch.vocabulary, arch.vocabulary), build.lm_head_weight(model)

    def loss(output, batch, index):
        each = torch.full((len(batch.targets),), 1.0 / total, device=layout.device)
        advantages = torch.tensor([1.0, -1.0], device=layout.device)[batch.sequence]
        tokens = TokenBatch(batch.targets, batch.sequence, each, each if batch.scored else 0 * each, advantages)
        teacher = TeacherStates(states.to(layout.device, dtype), teacher_head.to(layout.device, dtype))
        value, said = vold_loss(
            predicting(output, batch, layout), head, tokens, shard,
            Objective(kl=KLTerm("reverse") if batch.scored else None), teacher=teacher if batch.scored else None,
            head_gradient=head.main_grad,
        )  # fmt: skip
        return training.summed(value, said)

    passed = training.forward_backward(stage, batches, through(loss, layout), layout=layout)
    if passed.non_finite:
        raise RuntimeError(f"not finite: {'; '.join(map(str, passed.non_finite))}")
    found = {" ".join(place.hf): parameter.main_grad.float() for place, parameter in weights._held(model, arch, layout)}
    parallel.destroy()
    return passed.loss, found


def errors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """|found - wanted| / |wanted| over all tensors of each kind."""
    assert found.keys() == wanted.keys(), set(found) ^ set(wanted)
    said = {}
    for kind, pattern in KINDS.items():
        names = [name for name in found if re.search(pattern, name.split()[0])]
        said[kind] = relative(*(torch.cat([g[name].flatten().cpu() for name in names]) for g in (found, wanted)))
    return said


def bf16_step(place: Place) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / kind for kind in ("fp32", "bf16")]
        references = [_on_cpu(file, file.name) for file in files]
        try:
            found_loss, found = gradients(place.device.type, torch.bfloat16)
            (loss, wanted), (other_loss, other) = (_result(*each) for each in zip(references, files, strict=True))
        finally:
            for process in references:
                process.kill()
    place.say(loss_fp32=loss, loss_bf16_cpu=other_loss)
    why = "twice what bf16 on this CPU does to the same step (or 2^-8, one rounding): GPU kernels round no oftener"
    place.check("loss_error", abs(found_loss - loss), why, at_most=2 * max(abs(other_loss - loss), FLOOR * abs(loss)))
    measured = errors(other, wanted)
    for kind, error in errors(found, wanted).items():
        place.say(**{f"{kind}_error_on_cpu": measured[kind]})
        place.check(f"{kind}_error", error, why, at_most=2 * max(measured[kind], FLOOR))


def _on_cpu(file: Path, kind: str) -> subprocess.Popen:
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "tests.gpu.student", str(file), kind]
    with Path(f"{file}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**alone, "CUDA_VISIBLE_DEVICES": ""})


def _result(process: subprocess.Popen, file: Path) -> tuple[float, dict[str, torch.Tensor]]:
    if code := process.wait():
        said = Path(f"{file}.log").read_text(errors="replace")[-1500:]
        raise RuntimeError(f"the reference on the CPU left with {code}: {said}")
    loss, found = torch.load(file, weights_only=True)
    return loss, found


if __name__ == "__main__":
    sys.modules["transformer_engine"] = None  # an ImportError: it is no part of a CPU's path, and may want a GPU to be imported
    torch.save(gradients("cpu", {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]), sys.argv[1])
