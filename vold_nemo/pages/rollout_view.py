"""A step's rollouts in a terminal: which there are, and where in them student and teacher disagree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vold_nemo.config import ConfigError
from vold_nemo.config.printable import harmless, harmless_in

# Steps of one hue, from the terminal's own background to a dark one: the order survives colour-blindness and print.
SHADES = ("", "black on #fde0b4", "black on #fdae61", "#ffffff on #c5501a", "bold #ffffff on #8c2d04")
SCALES = {  # nats at which the next shade begins
    "kl": (0.05, 0.25, 1.0, 3.0),
    "gap": (0.01, 0.05, 0.2, 1.0),
    "surprise": (0.5, 1.5, 3.0, 6.0),
}
MEANING = {
    "kl": "KL estimator of student and teacher",
    "gap": "|log-prob of the trainer - of the engine|",
    "surprise": "-log-prob of the sampled token, by the student",
}
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Filter:
    """Bounds, both ends included; None = none.  ``kl`` is a token's mean over the rollout."""

    reward: tuple[float, float] | None = None
    length: tuple[float, float] | None = None
    kl: tuple[float, float] | None = None
    finish: str | None = None
    scored: bool | None = None
    id: str | None = None

    def keeps(self, row: dict[str, Any]) -> bool:
        values = {"reward": row["reward"], "length": row["response_tokens"], "kl": kl_mean(row)}
        for name, value in values.items():
            bounds = getattr(self, name)
            if bounds is not None and (value is None or not bounds[0] <= value <= bounds[1]):
                return False
        return all(
            wanted is None or row.get(name) == wanted
            for name, wanted in (("finish", self.finish), ("scored", self.scored), ("id", self.id))
        )


def kl_mean(row: dict[str, Any]) -> float | None:
    return row["kl_sum"] / row["kl_tokens"] if row.get("kl_tokens") and row.get("kl_sum") is not None else None


SORTS: dict[str, Callable[[dict], float]] = {  # the largest first
    "reward": lambda row: row["reward"],
    "length": lambda row: row["response_tokens"],
    "kl": lambda row: -1.0 if kl_mean(row) is None else kl_mean(row),
    "gap": lambda row: row.get("gap_max") or 0.0,
}


def find_file(path: Path, step: int | None) -> Path:
    """``path`` itself, or the file of ``step`` (None: the newest) in a run folder or in its ``rollouts/``."""
    if path.is_file():
        return path
    files = sorted((path / "rollouts" if (path / "rollouts").is_dir() else path).glob("step_*.jsonl"))
    chosen = [file for file in files if step is None or file.stem == f"step_{step:06d}"]
    if not chosen:
        there = ", ".join(str(int(file.stem[5:])) for file in files[-8:]) or "none"
        raise ConfigError(
            "run" if step is None else "--step", str(path) if step is None else step,
            f"a run folder of stage 2, or a rollouts/step_*.jsonl file (steps there: {there})",
            "name one of these; a run writes them every vold.rollout_log_every steps",
        )  # fmt: skip
    return chosen[-1]


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a rollouts file.  ConfigError where a row is not one, or none is there."""
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8-sig"))
            row["reward"], row["response_tokens"], row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}:{number}", line[:60].decode(errors="backslashreplace"), "a rollout as recipes/vold.py writes it",
                f"use another file ({type(error).__name__}: {error})",
            ) from None  # fmt: skip
        rows.append(harmless_in(row))
    if not rows:
        raise ConfigError("run", str(file), "a file with at least one rollout", "it is empty: name another step or run")
    return rows


def tokenizer_of(file: Path, given: Path | None) -> Callable[[list[int]], str] | None:
    """ids -> text by the tokenizer ``given``, or by that of the run's start (its config.yaml); None where that is not here.

    Raises:
        ConfigError: ``given`` is not there, or what is there is no tokenizer.
    """
    key = "--tokenizer"
    if given is None:
        import yaml

        key = "tokenizer of the run's vold.start"
        resolved = file.parent.parent / "config.yaml"
        start = (yaml.safe_load(resolved.read_text()) or {}).get("vold", {}).get("start") if resolved.is_file() else None
        given = Path(start) if start else None
    if given is not None and given.is_dir():
        given = given / "tokenizer.json"
    if given is None or not given.is_file():
        if key == "--tokenizer":
            raise ConfigError(key, str(given), "a tokenizer.json, or a folder that holds one", "correct the path")
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(given))
    except Exception as error:  # tokenizers raises nothing more special
        mend = f"give --tokenizer with another ({error})"
        raise ConfigError(key, str(given), "a tokenizer.json of the tokenizers library", mend) from None
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def pieces(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """What each token adds to the text; "" for one that ends inside a character, which its successor then brings whole."""
    found, start, read_to = [], 0, 0
    for at in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:read_to])), decode(list(ids[start:at]))
        if len(now) > len(before) and not now.endswith("\ufffd"):
            found.append(now[len(before) :])
            start, read_to = read_to, at
        else:
            found.append("")
    if read_to < len(ids):  # cut off inside a character
        found[-1] = decode(list(ids[start:]))[len(decode(list(ids[start:read_to]))) :]
    return found


def shade(value: float | None, scale: str) -> str:
    return "" if value is None else SHADES[sum(value >= bound for bound in SCALES[scale])]


def values_of(row: dict[str, Any], scale: str) -> list[float | None] | None:
    """What a token's shade says; None where the file has no such number of this rollout."""
    if scale == "kl":
        return None if row.get("kl") is None else [None if value is None else abs(value) for value in row["kl"]]
    name = "gaps" if scale == "gap" else "logprobs"
    return None if row.get(name) is None else [abs(value) for value in row[name]]


def coloured(row: dict[str, Any], decode: Callable | None, scale: str) -> tuple[Text, list[tuple[float, str, int]]]:
    """The answer with each token in its shade, and the tokens from the largest value down: (value, text, place)."""
    values = values_of(row, scale)
    if decode is None or values is None:
        return Text(harmless(row["text"])), []
    text, ranked, pending = Text(), [], []
    for at, (piece, value) in enumerate(zip(pieces(row["response_ids"], decode), values, strict=True)):
        pending += [] if value is None else [value]
        if piece:
            value, pending = max(pending, default=None), []
            text.append(harmless(piece), shade(value, scale))
            ranked += [] if value is None else [(value, piece, at)]
    return text, sorted(ranked, key=lambda item: (-item[0], item[2]))


def legend(scale: str) -> Text:
    bounds = [0.0, *SCALES[scale]]
    line = Text().append(f"{MEANING[scale]}, nats: ", "dim")
    for style, low in zip(SHADES, bounds, strict=True):
        line.append(f" {low:g}+ ", style)
    return line


def histogram(values: Sequence[float], bins: int = 24, top: float | None = None) -> str:
    """One character a bin from 0 to ``top``; the tallest bin fills its character."""
    top = top or max(values, default=1.0) or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value / top * bins))] += 1
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def overview(rows: Sequence[dict[str, Any]]) -> Table:
    """The rollouts by reward: how many, how long, how far from the teacher."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("reward", "rollouts", "share", "tokens", "cut off", "scored", "KL a token", "gap max"):
        table.add_column(name, justify="right")
    longest = max((row["response_tokens"] for row in rows), default=1)
    table.add_column(f"lengths, 0 to {longest}")
    for reward in sorted({row["reward"] for row in rows}):
        part = [row for row in rows if row["reward"] == reward]
        lengths = [row["response_tokens"] for row in part]
        kl = [(row["kl_sum"], row["kl_tokens"]) for row in part if kl_mean(row) is not None]
        gaps = [row["gap_max"] for row in part if row.get("gap_max") is not None]
        table.add_row(
            f"{reward:g}", str(len(part)), f"{len(part) / len(rows):.0%}", f"{sum(lengths) / len(part):.0f}",
            f"{sum(row['finish'] == 'length' for row in part) / len(part):.0%}", str(sum(bool(r.get("scored")) for r in part)),
            _number(sum(s for s, _ in kl) / sum(n for _, n in kl) if kl else None), _number(max(gaps, default=None)),
            histogram(lengths, top=longest),
            style=_reward_style(reward),
        )  # fmt: skip
    return table


def listing(rows: Iterable[dict[str, Any]]) -> Table:
    """One line a rollout."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("rollout", "reward", "tokens", "end", "KL/token", "gap", "adv.", "answer", "truth", "reason"):
        number = name in ("reward", "tokens", "KL/token", "gap", "adv.")
        table.add_column(name, justify="right" if number else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        advantage = row.get("advantage")
        table.add_row(
            harmless(f"{row['id']}/{row['sample']}"), f"{row['reward']:g}", str(row["response_tokens"]), row["finish"],
            _number(kl_mean(row)), _number(row.get("gap_max")), "-" if advantage is None else f"{advantage:+.2f}",
            _cell(row.get("extracted")), _cell(row.get("truth")), _cell(row.get("reason")),
            style=_reward_style(row["reward"]),
        )  # fmt: skip
    return table


def detail(row: dict[str, Any], decode: Callable | None, scale: str) -> Panel:
    """One rollout whole: question, answer in shades, verdict, and the tokens that stand out."""
    body, ranked = coloured(row, decode, scale)
    parts: list[RenderableType] = []
    if row.get("prompt"):
        parts += [Text(harmless(row["prompt"]), "dim"), Text()]
    parts += [body, Text()]
    said = "right" if row["reward"] == 1 else f"reward {row['reward']:g}"
    verdict = Text().append(said, _reward_style(row["reward"]))
    read, true, reason = (_cell(row.get(name)) for name in ("extracted", "truth", "reason"))
    verdict.append(f": read {read}, true is {true} ({reason})", "dim")
    parts.append(verdict)
    if ranked:
        line = Text().append("most: ", "dim")
        for value, piece, at in ranked[:6]:
            line.append(f"{harmless(piece)!r}", shade(value, scale)).append(f" {value:.3g} at {at}   ", "dim")
        parts.append(line)
    elif values_of(row, scale) is None:
        why = "not scored by the teacher" if scale == "kl" and not row.get("scored") else "no values by token in this file"
        parts.append(Text(f"no shades: {why}", "dim italic"))
    facts = [f"{row['response_tokens']} tokens", row["finish"]]
    facts += [f"KL {row['kl_sum']:.3g}"] if row.get("kl_sum") is not None else []
    facts += [f"gap {row['gap_mean']:.2g}, at most {row['gap_max']:.2g}"] if row.get("gap_max") is not None else []
    title = f"{harmless(str(row['id']))} · sample {row['sample']} · {', '.join(facts)}"
    return Panel(Group(*parts), title=Text(title), title_align="left", border_style=_reward_style(row["reward"]))


def _reward_style(reward: float) -> str:
    return "green" if reward == 1 else "red" if reward == 0 else "yellow"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cell(value: Any) -> str:
    return "-" if value is None else harmless(" ".join(str(value).split()))[:60]
