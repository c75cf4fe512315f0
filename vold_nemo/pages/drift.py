"""``drift.html``: the FP8 teacher's drift on one self-contained page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.pages.report.page import section, table
from vold_nemo.pages.style import CSS


def write(folder: str | Path, found: dict) -> Path:
    """``drift.json`` and ``drift.html`` in ``folder``, each whole or not at all; returns the page."""
    folder = Path(folder)
    page = render(found)
    with writing("drift.path", folder):
        replace_text(folder / "drift.json", json.dumps(found, indent=1) + "\n")
        replace_text(folder / "drift.html", page)
    return folder / "drift.html"


def render(found: dict) -> str:
    quantiles = ", ".join(f"{float(q):.1%} of tokens below {value:.2g}" for q, value in found["kl_quantiles"].items())
    numbers = [
        ["KL(bf16 ‖ FP8), mean of a token", f"{found['kl_mean']:.4g} nats", quantiles],
        ["largest", f"{found['kl_max']:.4g} nats", "the worst tokens stand below"],
        ["same first choice", f"{found['same_first_choice']:.2%}", f"{found['tokens']:,} tokens, {found['traces']:,} traces"],
        ["cosine of the distillation gradients", f"{found['gradient_cosine']:.5f}", "in the student, FP8 against bf16"],
        ["ratio of their norms", f"{found['gradient_norm_ratio']:.4f}", "FP8 over bf16"],
    ]  # fmt: skip
    worst = max(found["layers"], default=0.0) or 1.0
    bars = "".join(
        f'<div class="stack"><b>layer {number}</b><div class="track"><span style="width:{100 * error / worst:.1f}%;'
        f'background:var(--grpo)"></span></div><i>{error:.3g}</i></div>'
        for number, error in enumerate(found["layers"])
    )
    tokens = [
        [
            escape(token["trace"]), str(token["position"]), f"{token['kl']:.3g}", escape(repr(token["token"])),
            escape(token["before"]), "yes" if token["same_first_choice"] else "no",
        ]
        for token in found["worst_tokens"]
    ]  # fmt: skip
    body = (
        '<header><p class="over">teacher in FP8</p>'
        f"<h1>{escape(found['teacher'])}</h1><p class=\"lead\">{escape(found['precision'])}; {escape(found['layout'])}. "
        f"Traces: {escape(found['source'])}.</p></header>"
        + section("What a user decides by", "The gradient is what the student gets to see of the teacher.",
                  table(["", "", ""], numbers, numeric={1}))
        + section("Layers", "Error of each FP8 layer on the bf16 model's own input, over what the layer adds.",
                  f'<div class="panel">{bars}</div>')
        + section("Worst tokens", "Where the two teachers differ most, with what stands before.",
                  table(["trace", "position", "KL", "token", "before", "same first choice"], tokens, numeric={1, 2}))
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>Teacher drift: {escape(found['teacher'])}</title><style>{CSS}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
