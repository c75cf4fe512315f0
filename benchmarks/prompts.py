"""How long the door takes that every prompt comes through when data are loaded: read, rendered, tokenised, checked, kept.

    python benchmarks/prompts.py [prompts=57000] [tokens=150] [tokenizer=FOLDER] [results=benchmarks/results/prompts.md]

A file of ``prompts`` questions of about ``tokens`` tokens (57,000 are the size of Open-Reasoner-Zero's set) is read as stage 2
reads it, and goes through the door twice: the second time its ids come from the cache.  Texts are those of ``tokenise.py``.
``tokenizer`` is a checkpoint's folder (its tokenizer and chat template alone will do: ``make test-tokenizers`` says where it
keeps published ones); without one a tokenizer of ``vocabulary`` ids is trained on the texts.  Wall time counts whatever else
the machine does; processor seconds of all threads do not, and those of the main thread bound the wall time of an idle machine
from below.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import machine, parse, tell
from benchmarks.tokenise import build_tokenizer, corpus
from vold_nemo.config import DatasetConfig
from vold_nemo.data.prompts import load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rendering import Renderer, Room, admit
from vold_nemo.data.templates import load_tokenizer
from vold_nemo.rewards.answer_keys import refusal
from vold_nemo.rewards.key_forms import report_keys

DEFAULTS = {
    "prompts": 57_000, "tokens": 150, "tokenizer": "", "vocabulary": 50_000, "json": False,
    "results": "benchmarks/results/prompts.md",
}  # fmt: skip


def write_prompts(path: Path, tokenizer, text: str, prompts: int, tokens: int) -> None:
    chance, ids = random.Random(1), tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    with path.open("w") as file:
        for number in range(prompts):
            start, length = chance.randrange(len(ids) - 2 * tokens), chance.randint(tokens // 2, 3 * tokens // 2)
            row = {"id": f"q{number}", "prompt": tokenizer.decode(ids[start : start + length]), "answer": str(number)}
            file.write(json.dumps(row) + "\n")


def timed(work) -> tuple[object, dict[str, float]]:
    """What ``work`` returns, and its seconds."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time, "main_thread": time.thread_time}
    began = {name: clock() for name, clock in clocks.items()}
    found = work()
    return found, {name: round(clock() - began[name], 2) for name, clock in clocks.items()}


def main(arguments: list[str]) -> dict:
    settings = parse(arguments, DEFAULTS)
    text, said = corpus(20_000_000), {}
    if settings["tokenizer"]:
        tokenizer, said["tokenizer"] = timed(lambda: load_tokenizer(settings["tokenizer"]))
        settings["tokenizer"] = Path(settings["tokenizer"]).name  # what is kept names no machine's folders
    else:
        tokenizer = build_tokenizer(text[:10_000_000], settings["vocabulary"])
    with tempfile.TemporaryDirectory() as folder:
        path, rejected = Path(folder) / "prompts.jsonl", Rejected(None, 0.05)
        write_prompts(path, tokenizer, text, settings["prompts"], settings["tokens"])
        prompts, said["read"] = timed(
            lambda: load_prompts(
                DatasetConfig(path=str(path)), None, rejected, refuse=refusal("boxed"), verifier="boxed", instruction="Box it."
            )
        )

        def door() -> list:
            room = Room(8192, "rollout.max_tokens", 32_768)
            return admit(prompts, Renderer(tokenizer), room, rejected, str(path), cache=Path(folder) / "cache")

        admitted, said["render and tokenise"] = timed(door)
        _, said["again, from the cache"] = timed(door)
        _, said["report of the keys"] = timed(lambda: report_keys(((p.id, p.answer, p.verifier) for p in prompts), "boxed"))
    first = [part for part in said if part != "again, from the cache"]
    found = {
        "prompts": len(admitted), "tokens": sum(len(prompt.ids) for prompt in admitted), "seconds": said,
        "together": {clock: round(sum(said[part][clock] for part in first), 2) for clock in said["read"]},
    }  # fmt: skip
    where = machine("cpu")
    given = f" tokenizer={settings['tokenizer']}" if settings["tokenizer"] else ""
    lines = [
        "# Loading prompts", "",
        f"`python benchmarks/prompts.py prompts={settings['prompts']} tokens={settings['tokens']}{given}` on {where}: "
        f"{found['prompts']:,} prompts, {found['tokens']:,} tokens, a tokenizer of {len(tokenizer):,} ids.", "",
        "| seconds | wall | processor, all threads | main thread |", "|---|---|---|---|",
    ]  # fmt: skip
    rows = {**said, "together, without the second time": found["together"]}
    lines += [
        f"| {part} | {one['wall']:.1f} | {one['processor']:.1f} | {one['main_thread']:.1f} |" for part, one in rows.items()
    ]
    tell(settings, found, where, "\n".join(lines) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
