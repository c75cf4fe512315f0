"""Item ``import``: is everything there that the others need, and does the GPU multiply?"""

from __future__ import annotations

import importlib.util

import torch

from tests.gpu.place import GPU, Place, relative


def imports(place: Place) -> None:
    """Every library of the GPU path, the project's own upper floors, and one bf16 product.

    A library that is not installed is no failure: the items that need it say so.  One that is there and cannot be imported is.
    """
    from vold_nemo.megatron import build, fp8, precision
    from vold_nemo.megatron.architecture import read

    hardware = fp8.hardware(place.device)
    place.say(capability=".".join(map(str, place.capability)), engine=hardware.engine, torch_cuda=torch.version.cuda)
    if place.kind == GPU:
        place.say(cudnn=torch.backends.cudnn.version(), nccl=".".join(map(str, torch.cuda.nccl.version())))
    imported = []
    for name in ("transformer_engine.pytorch", "triton", "megatron.core", "nemo.core.classes", "vold_nemo.models.vold"):
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            if package in ("megatron", "nemo"):
                raise ModuleNotFoundError(f"{package}: the training stages need it (docs/first_gpu.md)")
            continue
        importlib.import_module(name)
        imported.append(name)
    layers = "Transformer Engine's" if build.has_transformer_engine() else "the project's own"
    place.say(imported=imported, layers=layers)
    from vold_nemo.config import TeacherConfig

    chosen = precision.choose(TeacherConfig(path="Qwen/Qwen3-8B"), "bf16", hardware, read("Qwen/Qwen3-8B"), 1)
    place.say(teacher_of_8b=chosen.describe())
    left, right = (torch.randn(1024, 1024, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    error = relative(left @ right, left.double() @ right.double())
    because = "sums are formed in fp32 and rounded once to bf16's 8 significant bits: at most 2^-8 of a value"
    place.check("product_error", error, because, at_most=2**-8)
