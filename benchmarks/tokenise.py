"""How fast traces become the token cache of stage 1: JSON lines in, mapped ids out.

    python benchmarks/tokenise.py [examples=5000] [tokens=1000] [vocabulary=50000] [results=benchmarks/results/tokenise.md]

Traces of ``tokens`` tokens, as text (a dataset's own: the student's tokenizer reads them) and as ids (a teacher's, generated
here).  The tokenizer is a byte-level BPE with the splitting rule of Qwen2's, trained on the sources of the installed Python
packages, from which the texts are cut, too; its training is not timed.  Wall time counts whatever else the machine does;
processor seconds do not, and those of the main thread bound the wall time of an idle machine from below.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import machine, parse
from vold_nemo.data import token_cache
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.traces import TraceCounts, read_traces, trace_files
from vold_nemo.miniature.tokenizer import CHAT_TEMPLATE

DEFAULTS = {"examples": 5_000, "tokens": 1000, "vocabulary": 50_000, "results": "benchmarks/results/tokenise.md"}
SPLIT = (  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def corpus(characters: int) -> str:
    """Text of installed packages: prose of docstrings and code, in an order that hangs on nothing else."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    random.Random(0).shuffle(files)
    parts, size = [], 0
    for file in files:
        if size >= characters:
            break
        parts.append(file.read_text("utf-8", "ignore"))
        size += len(parts[-1])
    return "".join(parts)[:characters]


def build_tokenizer(text: str, vocabulary: int):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
    )  # fmt: skip
    inner.train_from_iterator([text[i : i + 100_000] for i in range(0, len(text), 100_000)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_traces(path: Path, tokenizer, text: str, examples: int, tokens: int, kind: str) -> None:
    chance = random.Random(1)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    with path.open("w") as file:
        for number in range(examples):
            start = chance.randrange(len(ids) - tokens)
            question, answer = ids[start : start + tokens // 10], ids[start + tokens // 10 : start + tokens]
            row = {
                "id": f"example-{number}", "sample": 0, "finish": "stop", "source": "packages",
                "messages": [{"role": "user", "content": tokenizer.decode(question)}],
                "response": tokenizer.decode(answer), "response_ids": [*answer, end] if kind == "ids" else None,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def measure(folder: Path, tokenizer, path: Path) -> dict:
    """Seconds from the trace file to a cache folder, and what is in it."""
    end = [tokenizer.eos_token_id]
    began = time.perf_counter(), time.process_time(), time.thread_time()
    name = token_cache.fingerprint(trace_files(path), token_cache.tokenizer_settings(tokenizer))
    counts = TraceCounts()
    found = read_traces(path, tokenizer, counts, max_length=1 << 20, rejected=Rejected(None, 0.0), end_ids=end)
    token_cache.write(folder / name, found, counts)
    ended = time.perf_counter(), time.process_time(), time.thread_time()
    stored = token_cache.StoredExamples(folder / name)
    total = sum(len(stored[i].ids) for i in range(len(stored)))
    wall, processor, thread = (b - a for a, b in zip(began, ended, strict=True))
    return {
        "examples": len(stored), "tokens": total, "wall": wall, "processor": processor, "main_thread": thread,
        "per_minute": 60 * len(stored) / wall, "per_minute_of_two_cores": 120 * len(stored) / max(processor, 2 * thread),
    }  # fmt: skip


def main(arguments: list[str]) -> dict:
    settings = parse(arguments, DEFAULTS)
    text = corpus(20_000_000)
    tokenizer = build_tokenizer(text[:10_000_000], settings["vocabulary"])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("text", "ids"):
            path = Path(folder) / f"{kind}.jsonl"
            write_traces(path, tokenizer, text, settings["examples"], settings["tokens"], kind)
            found[kind] = measure(Path(folder), tokenizer, path) | {"megabytes": path.stat().st_size / 1e6}
    lines = [
        "# Tokenising traces", "",
        f"`python benchmarks/tokenise.py examples={settings['examples']} tokens={settings['tokens']}` on {machine('cpu')}; "
        f"a byte-level BPE of {len(tokenizer)} tokens.", "",
        "Processor seconds are those of all threads. The last column is what two idle cores would do in a minute: examples",
        "over half the processor seconds, or over those of the main thread where they are more.", "",
        "| traces as | examples | tokens | file | wall | processor | main thread | a minute, measured | a minute, idle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {kind} | {m['examples']:,} | {m['tokens']:,} | {m['megabytes']:.0f} MB | {m['wall']:.1f} s | "
        f"{m['processor']:.1f} s | {m['main_thread']:.1f} s | {m['per_minute']:,.0f} | {m['per_minute_of_two_cores']:,.0f} |"
        for kind, m in found.items()
    ]
    if settings["results"]:
        Path(settings["results"]).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
