"""Small models that are not there: ``config.json`` and a list of tensors, and rehearsals of them in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import placements
from vold_nemo.megatron.tensors import LISTED

ROOT = Path(__file__).parents[2]
STUDENT = dict(
    model_type="qwen2", hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    intermediate_size=512, vocab_size=4096, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6,
    tie_word_embeddings=True,
)  # fmt: skip
TEACHER = dict(
    model_type="qwen3_moe", hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    intermediate_size=512, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True,
    vocab_size=4096, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False,
)  # fmt: skip
SHORT = (
    "cluster=h100", "objective=vold", "plan.prompt_tokens=32", "plan.response_tokens=200", "plan.trace_tokens=200",
    "rollout.max_tokens=512", "sft.max_length=512", "sft.batch=16", "vold.prompts_per_step=8", "vold.micro_batch_tokens=1024",
)  # fmt: skip


def write(folder: Path, config: dict) -> Path:
    """A checkpoint folder whose tensors are listed and not there."""
    arch = Architecture.from_hf(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    listed = {
        name: ["BF16", list(shape)]
        for place in placements(arch, 1, arch.vocabulary) for name, shape in zip(place.hf, place.shapes, strict=True)
    }  # fmt: skip
    (folder / LISTED).write_text(json.dumps(listed))
    return folder


@dataclass(frozen=True)
class Rehearsed:
    """What the command left: its exit code, all that it printed, and the JSON of the rank, if it wrote one."""

    code: int
    said: str
    found: dict | None

    @property
    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.found["violations"]}

    def phase(self, name: str) -> dict:
        return next(row for row in self.found["phases"] if row["phase"] == name)


def rehearse(outputs: Path, *overrides: str, root: Path = ROOT) -> Rehearsed:
    """``recipes/rehearse.py`` of the package in ``root``."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "recipes" / "rehearse.py"), f"outputs={outputs}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=outputs.parent)
    files = sorted(outputs.glob("*/rehearsal/*_rank*.json"), key=lambda file: file.stat().st_mtime)
    return Rehearsed(done.returncode, done.stdout + done.stderr, json.loads(files[-1].read_text()) if files else None)
