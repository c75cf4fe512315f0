"""``drift.html``: the FP8 teacher's drift on one self-contained page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.pages.blocks import Section, Table
from vold_nemo.pages.charts import Stack, stacked_rows
from vold_nemo.pages.render import render


def write(folder: str | Path, found: dict[str, Any]) -> Path:
    """``drift.json`` and ``drift.html`` in ``folder``, each whole or not at all; returns the page."""
    folder = Path(folder)
    page = draw(found)
    with writing("drift.path", folder):
        replace_text(folder / "drift.json", json.dumps(found, indent=1) + "\n")
        replace_text(folder / "drift.html", page)
    return folder / "drift.html"


def draw(found: dict[str, Any]) -> str:
    quantiles = ", ".join(f"{float(q):.1%} of tokens below {value:.2g}" for q, value in found["kl_quantiles"].items())
    numbers = [
        ["KL(bf16 ‖ FP8), mean of a token", f"{found['kl_mean']:.4g} nats", quantiles],
        ["largest", f"{found['kl_max']:.4g} nats", "the worst tokens stand below"],
        ["same first choice", f"{found['same_first_choice']:.2%}", f"{found['tokens']:,} tokens, {found['traces']:,} traces"],
        ["cosine of the distillation gradients", f"{found['gradient_cosine']:.5f}", "in the student, FP8 against bf16"],
        ["ratio of their norms", f"{found['gradient_norm_ratio']:.4f}", "FP8 over bf16"],
    ]  # fmt: skip
    layers = [Stack(f"layer {i}", [("", error, "var(--grpo)")]) for i, error in enumerate(found["layers"])]
    tokens = [
        [token["trace"], str(token["position"]), f"{token['kl']:.3g}", repr(token["token"]), token["before"],
         "yes" if token["same_first_choice"] else "no"]
        for token in found["worst_tokens"]
    ]  # fmt: skip
    head = ["trace", "position", "KL", "token", "before", "same first choice"]
    sections = [
        Section("What a user decides by", "The gradient is what the student gets to see of the teacher.",
                [Table([], numbers, {1})]),
        Section("Layers", "Error of each FP8 layer on the bf16 model's own input, over what the layer adds.",
                [stacked_rows("", layers, part="{:.3g}", total="{:.3g}")]),
        Section("Worst tokens", "Where the two teachers differ most, with what stands before.",
                [Table(head, tokens, {1, 2})]),
    ]  # fmt: skip
    lead = f"{found['precision']}; {found['layout']}. Traces: {found['source']}."
    return render(f"Teacher drift: {found['teacher']}", found["teacher"], lead, sections, over="teacher in FP8")
