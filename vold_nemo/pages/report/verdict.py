"""What the numbers say, in plain words.  No sentence here is written before its numbers are known."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.evaluation.pairs import Pair
from vold_nemo.evaluation.results import ArmDifference, Results
from vold_nemo.evaluation.statistics import Difference

LABELS = {"base": "Base", "sft": "SFT", "sft_grpo": "SFT + GRPO", "sft_vold": "SFT + VOLD"}
PLURAL = {"image": "image questions", "text": "text questions"}


def label(arm: str) -> str:
    return LABELS.get(arm, arm)


def title_of(kind: str) -> str:
    """A benchmark's own name; the set's, if it is none."""
    from vold_nemo.evaluation.benchmarks.table import BENCHMARKS

    return BENCHMARKS[kind].title if kind in BENCHMARKS else kind


@dataclass(frozen=True)
class Sentence:
    """``tone``: good (a difference in the method's favour), bad (against it), open (none that could be shown)."""

    text: str
    tone: str
    detail: str = ""


def tone_of(entry: Difference) -> str:
    """Both the bootstrap interval and McNemar's test (where there is one) must speak for a difference at 5 %."""
    if entry.p is not None and entry.p >= 0.05:
        return "open"
    return "good" if entry.low > 0 else "bad" if entry.high < 0 else "open"


def verdict(entry: ArmDifference | Pair) -> str:
    says = {"good": "is better than", "bad": "is worse than", "open": "cannot be told from"}[tone_of(entry)]
    return f"{label(entry.first)} {says} {label(entry.second)}"


def p_text(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def evidence(entry: Difference) -> str:
    test = f", McNemar {p_text(entry.p)}" if entry.p is not None else ""
    return f"{points(entry.value)} points, 95 % interval {points(entry.low)} to {points(entry.high)}{test}"


def headline(results: Results) -> Sentence:
    """VOLD against GRPO, on images if there are any: the question this page exists for."""
    accuracy = results.accuracy
    missing = [label(arm) for arm in ("sft_vold", "sft_grpo") if arm not in accuracy]
    kind = next((k for k in ("image", "text") if results.differences.get(k)), None)
    entry = results.difference(kind, "sft_vold", "sft_grpo") if kind and not missing else None
    if entry is None:
        return Sentence(
            f"VOLD and GRPO cannot be compared here: {' and '.join(missing) or 'paired answers'} missing.", "open"
        )
    vold, grpo = (accuracy[arm][kind].value for arm in ("sft_vold", "sft_grpo"))
    numbers = f"{vold:.1%} against {grpo:.1%} of {entry.n} {PLURAL[kind]}"
    tone = tone_of(entry)
    if tone == "good":
        return Sentence(f"VOLD beat GRPO in this run: {numbers}.", tone)
    if tone == "bad":
        return Sentence(f"VOLD did not beat GRPO in this run; it was worse: {numbers}.", tone)
    excuse = "no difference" if entry.value == 0 else "a difference that chance alone could make"
    return Sentence(f"VOLD did not beat GRPO in this run: {numbers}, {excuse}.", tone)


def sentences(results: Results) -> list[Sentence]:
    """One sentence for each comparison that the method makes a claim about."""
    found = []
    claims = (
        ("image", "sft_vold", "sft_grpo", "What distillation adds to reward alone, on images"),
        ("text", "sft_vold", "sft_grpo", "The same on text, where both were trained"),
        ("image", "sft_vold", "sft", "What stage 2 with VOLD adds to the cold start, on images"),
        ("image", "sft_grpo", "sft", "What stage 2 with GRPO adds to the cold start, on images"),
        ("image", "sft", "base", "What the cold start on text traces does to images"),
        ("image", "sft_vold", "base", "Both stages together, on images, which neither stage trained on"),
    )
    for kind, first, second, topic in claims:
        entry = results.difference(kind, first, second)
        if entry is None:
            continue
        detail = f"Greedy: {evidence(entry)}."
        if entry.sampled:
            detail += f" Temperature 1: {evidence(entry.sampled)}."
        found.append(Sentence(f"{topic}: {verdict(entry)}.", tone_of(entry), detail))
    found += transfer(results)
    return found


def transfer(results: Results) -> list[Sentence]:
    """How much of what was learned on text arrives on images."""
    accuracy = results.accuracy
    if not all(kind in accuracy.get(arm, {}) for arm in ("base", "sft_vold") for kind in ("text", "image")):
        return []
    gain = {k: accuracy["sft_vold"][k].value - accuracy["base"][k].value for k in ("text", "image")}
    if gain["text"] <= 0:
        return [
            Sentence(
                f"On text SFT + VOLD gained {points(gain['text'])} points over the base: nothing to transfer.", "bad"
            )
        ]
    share = gain["image"] / gain["text"]
    detail = f"SFT + VOLD over the base: {points(gain['text'])} points on text, {points(gain['image'])} on images."
    return [
        Sentence(f"{share:.0%} of what was gained on text arrived on images.", "good" if share > 0 else "bad", detail)
    ]


CAVEATS = (
    "Intervals and tests speak of the questions drawn, not of other training seeds: every arm is one run.",
    "p-values are not corrected for the number of comparisons.",
)
