"""A process that plays a GPU and runs Transformer Engine's layers on it; prints what it found as one line of JSON.

    python -m tests.rehearsal.engine_job FOLDER CAPABILITY    # of the unpacked wheel; e.g. 9.0
"""
# ruff: noqa: E402  the device is played before torch is imported

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "RANK": "0", "WORLD_SIZE": "64", "LOCAL_RANK": "0"}

from vold_nemo.rehearsal import shim

shim.load()

import torch

from tests.rehearsal.engine_job_shapes import HIDDEN, TOKENS, WIDE
from vold_nemo.rehearsal import engine, routing, stand_ins, values
from vold_nemo.rehearsal.engine import gemm, quantise, report
from vold_nemo.rehearsal.groups import Groups
from vold_nemo.rehearsal.ledger import Ledger
from vold_nemo.rehearsal.watch import Watch

launches: Counter[str] = Counter()
work: Counter[str] = Counter()


def start(site: Path, capability: tuple[int, int]) -> Watch:
    ledger = Ledger()
    watch = Watch(ledger, Groups(0, 64, 8))
    stand_ins.play_gpu(stand_ins.GPU("a test", capability, 80 << 30), ledger, watch)
    engine.install(site)
    stand_ins.play_world(ledger, watch)

    def on_kernel(name, *, flops, dtype):
        launches[name] += 1
        work[f"{name} {str(dtype).removeprefix('torch.')}"] += flops

    report.on_kernel, report.values_of = on_kernel, values.known
    watch.groups.join()
    return watch


def counted(run) -> dict:
    """What ``run`` launches, by name."""
    launches.clear()
    work.clear()
    run()
    return {"launches": dict(launches), "work": dict(work)}


def saved(module, *inputs) -> dict:
    """Bytes of each tensor that autograd keeps for ``module(*inputs)``, parameters left out."""
    kept, parameters = {}, {p.untyped_storage()._cdata for p in module.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
    output = output[0] if isinstance(output, tuple) else output
    done = counted(lambda: output.backward(torch.empty_like(output)))
    return {"kept": sorted(kept.values()), "backward": done["launches"], "output": list(output.shape)}


def bf16_layers(te) -> dict:
    def given(*shape):
        return torch.empty(*shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)

    plain = dict(params_dtype=torch.bfloat16, bias=False)
    attention = dict(qkv_format="sbhd", attn_mask_type="causal")
    query = [given(TOKENS, 2, 8, 64), given(TOKENS, 2, 2, 64), given(TOKENS, 2, 2, 64)]
    packed = [given(2 * TOKENS, 8, 64), given(2 * TOKENS, 2, 64), given(2 * TOKENS, 2, 64)]
    starts = torch.tensor([0, 256, 2 * TOKENS], dtype=torch.int32).to("cuda")
    core = te.DotProductAttention(8, 64, num_gqa_groups=2, **attention)
    thd = te.DotProductAttention(8, 64, num_gqa_groups=2, qkv_format="thd", attn_mask_type="padding_causal")

    def of_packed(q, k, v):
        return thd(q, k, v, cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=1792, max_seqlen_kv=1792)

    of_packed.parameters = list
    norm = te.LayerNormLinear(HIDDEN, WIDE, normalization="RMSNorm", **plain)
    return {
        "norm": saved(norm, given(TOKENS, 1, HIDDEN)),
        "linear": saved(te.Linear(HIDDEN, WIDE, **plain), given(TOKENS, 1, HIDDEN)),
        "attention": saved(core, *query) | {"work": counted(lambda: core(*query))["work"]},
        "packed": saved(of_packed, *packed) | {"work": counted(lambda: of_packed(*packed))["work"]},
        "adam": counted(lambda: step(te, norm)),
        "experts": experts(te, given),
        "permutation": counted(lambda: permuted(te, given)),
    }


def experts(te, given) -> dict:
    """Three experts in one module, of which one gets no token."""
    module = te.GroupedLinear(3, HIDDEN, WIDE, bias=False, params_dtype=torch.bfloat16)

    def forward_backward() -> None:
        output = module(given(TOKENS, HIDDEN), [TOKENS - 256, 0, 256])
        output.backward(torch.empty_like(output))

    return counted(forward_backward) | {"gradients": [list(p.grad.shape) for p in module.parameters()]}


def permuted(te, given) -> None:
    """As ``moe_permute_fusion`` does it: one custom operator, which under fake tensors allocates and launches nothing; the map
    that it begins with is made here by its kernels in Triton."""
    from transformer_engine.pytorch.triton.permutation import make_row_id_map

    chosen = routing.balanced_map(TOKENS, 4, 2, torch.device("cuda"))
    rows, _ = te.moe_permute(given(TOKENS, HIDDEN), chosen, num_out_tokens=2 * TOKENS, map_type="mask")
    assert rows.shape == (2 * TOKENS, HIDDEN) and values.known(chosen).sum(0).tolist() == [TOKENS // 2] * 4
    assert make_row_id_map(chosen, TOKENS, 4).shape == (TOKENS, 9)


def step(te, module) -> None:
    optimizer = te.optimizers.FusedAdam(module.parameters(), lr=1e-3)
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()


def recipes(te, capability) -> dict:
    from transformer_engine.common import recipe

    of = {"tensorwise": recipe.Float8CurrentScaling, "blockwise": recipe.Float8BlockScaling, "mxfp8": recipe.MXFP8BlockScaling}
    found = {}
    for name in ("tensorwise", "mxfp8" if capability[0] == 10 else "blockwise"):
        chosen = of[name]()
        with torch.no_grad(), te.quantized_model_init(recipe=chosen):
            module = te.Linear(HIDDEN, WIDE, bias=False, params_dtype=torch.bfloat16)
        weight = module.weight
        parts = [part for part in vars(weight).values() if isinstance(part, torch.Tensor)]

        def run(module=module, chosen=chosen):
            with torch.no_grad(), te.autocast(enabled=True, recipe=chosen):
                module(torch.empty(TOKENS, 1, HIDDEN, dtype=torch.bfloat16, device="cuda"))

        found[name] = counted(run) | {"bytes": sum(p.numel() * p.element_size() for p in parts)}
        found[name]["backward"] = refused(lambda weight=weight: _backward_product(weight))
    return found


def scale_shapes(te) -> list:
    """(what the stand-in allocates, what Transformer Engine's Python says) for tensors that are no neat multiples."""
    quantisers = [te.Float8BlockQuantizer(te.DType.kFloat8E4M3, rowwise=True, columnwise=True, block_scaling_dim=dim)
                  for dim in (1, 2)]  # fmt: skip
    quantisers.append(te.MXFP8Quantizer(te.DType.kFloat8E4M3))
    cases = [(quantiser, shape, columnwise) for quantiser in quantisers for columnwise in (False, True)
             for shape in ((32, 96), (160, 1056), (4, 64, 128), (2048, 4096))]  # fmt: skip
    return [[list(quantise.scale_shape(q, shape, col)), list(q.get_scale_shape(shape, col))] for q, shape, col in cases]


def _backward_product(weight) -> None:
    """dX = dY W, which reads a weight along its columns."""
    gradient = quantise.create(weight._quantizer, (TOKENS, WIDE), torch.bfloat16)
    gemm.generic_gemm(weight, False, gradient, False, None, None, None, None, 6, False, None, True, None, 0, False, True)


def refused(call) -> str | None:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return None


def models() -> dict:
    from vold_nemo.config.compose import compose
    from vold_nemo.megatron import build, fp8, parallel, precision
    from vold_nemo.megatron.architecture import read

    config = compose(["experiment=paper_3b_h100", "parallel.expert=4"])
    layout = parallel.initialize_from(config)
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="cuda")
    found = {}
    small = dataclasses.replace(read(config.student.path), layers=2)
    for recompute in ("none", "selective", "full"):
        model = build.build_model(small, layout, padded_vocabulary=151936, dtype=torch.bfloat16, recompute=recompute)
        for parameter in model.parameters():  # DDP's, which fused weight gradients are added to
            parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        forward = counted(lambda model=model: outputs.append(model(ids, ids, None)))
        backward = counted(lambda: outputs[-1].backward(torch.empty_like(outputs[-1])))
        found[recompute] = [forward["launches"], backward["launches"]]
    experts = dataclasses.replace(read("Qwen/Qwen3-235B-A22B"), layers=2, experts=8, experts_per_token=2)
    held = precision.choose(config.teacher, "bf16", fp8.hardware(layout.device), experts, layout.tensor)
    model = build.build_model(experts, layout, padded_vocabulary=151936, dtype=torch.bfloat16, trainable=False, held=held)
    fp8.assert_held(model, held)
    with torch.no_grad():
        found["experts"] = counted(lambda: model(ids, ids, None)) | {"held": held.describe()}
    found["experts"]["expected"] = 2 * 2 * (TOKENS * 2 // layout.tensor) * 3 * experts.hidden * experts.expert_ffn
    return found


outputs: list[torch.Tensor] = []

if __name__ == "__main__":
    capability = tuple(map(int, sys.argv[2].split(".")))
    with start(Path(sys.argv[1]), capability):
        import transformer_engine.pytorch as te

        found = {"recipes": recipes(te, capability)}
        if capability == (9, 0):
            found |= {"layers": bf16_layers(te), "models": models(), "scale shapes": scale_shapes(te)}
        print("FOUND " + json.dumps(found))
