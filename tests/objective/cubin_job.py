"""Compiles every Triton kernel of the objective for GPUs that are not here; prints a line of JSON for each.

    PYTHONPATH=FOLDER_WITH_TRITON python -m tests.objective.cubin_job

Run by tests/objective/test_cubins.py in a process of its own, with a triton of its own.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vold_nemo.objective import kernels

ARCHITECTURES = (80, 90, 100)
FP32, INT = "*fp32", "i32"
NORMALISE = dict(z=FP32, u=FP32, out=FP32, v=INT, rows=INT, scale="fp32", scale_q="fp32")
GRADIENT = dict(z=FP32, u=FP32, norm=FP32, norm_q=FP32, mean=FP32, weight=FP32, column=FP32, v=INT)
# What `normalise` and `gradient` launch: without a teacher, beside one for an estimator that forms its gradient by torch, and
# for the two exact divergences.
VARIANTS = [
    *((kernels._normalise, NORMALISE, {"TEACHER": teacher, "DIRECTION": direction})
      for teacher, direction in ((False, 0), (True, 0), (True, 1), (True, 2))),
    *((kernels._gradient, GRADIENT, {"DIRECTION": direction}) for direction in (0, 1, 2)),
]  # fmt: skip


def compiled(kernel, signature: dict, constants: dict, capability: int, aligned: tuple[str, ...]) -> dict:
    """One variant; arguments in ``aligned`` are multiples of 16, as Triton finds out of each when it launches."""
    constants = constants | {"BLOCK": kernels._BLOCK}
    signature = signature | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=hints)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernels._WARPS})
    ptx = made.asm["ptx"]
    moves = collections.Counter(re.findall(r"\b(?:ld|st)\.(?:global|local)[.\w:]*", ptx))
    return {
        "kernel": kernel.__name__, "constants": {k: v for k, v in constants.items() if k != "BLOCK"}, "sm": capability,
        "aligned": list(aligned), "shared": made.metadata.shared, "cubin": len(made.asm["cubin"]), "moves": moves,
        "local": ".local" in ptx, **usage(made.asm["cubin"]),
    }  # fmt: skip


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a thread, as the assembler laid them out."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": found["reg"], "stack": found["stack"], "local_bytes": found["local"]}


def main() -> None:
    for kernel, signature, constants in VARIANTS:
        pointers = tuple(name for name, kind in signature.items() if kind == FP32)
        for capability in ARCHITECTURES:
            for aligned in ((*pointers, "v"), pointers):  # rows of a chunk are any number
                print(json.dumps(compiled(kernel, signature, constants, capability, aligned)), flush=True)


if __name__ == "__main__":
    main()
