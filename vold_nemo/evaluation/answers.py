"""One model answers every question; each answer is kept as one line of JSON.

    <folder>/answers/<arm>.jsonl    {"set", "id", "mode": greedy | sampled, "sample", "text", "reward", ...} a line
    <folder>/answers/<arm>.json     what these answers are of: a fingerprint of weights, questions and settings

The answers of a finished arm are read back, not made again; those of an interrupted one are continued where they stopped.
A checkpoint, a question or a setting that changed starts the arm anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.data.prompts import Prompt

_DECIDING = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
             "chat_template.jinja", "chat_template.json")  # fmt: skip

# (response text, true answer, verifier name or None) rows -> rewards, extracted answers and reasons
Score = Callable[[list[tuple[str, str, str | None]]], Sequence]


@dataclass(frozen=True)
class Settings:
    """How questions are answered; ``samples`` at temperature 1 beside the greedy answer."""

    max_tokens: int
    samples: int
    seed: int
    batch: int
    dtype: str
    verifier: str


def question_text(prompt: Prompt) -> str:
    """The messages in plain text, a ▢ for each image."""
    parts = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join("▢" if part["type"] == "image" else part["text"] for part in content)
        parts.append(content.strip())
    return "\n".join(parts)


def model_fingerprint(path: str | Path) -> str:
    """Hash over the bytes of the weights and of every file that decides how they answer."""
    folder = Path(path)
    files = [folder / name for name in _DECIDING if (folder / name).is_file()] + sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise ConfigError("evaluate.models", str(path), "a folder with config.json and *.safetensors",
                          "run the recipe that writes this checkpoint, or take the arm out of evaluate.models")  # fmt: skip
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def questions_fingerprint(questions: dict[str, list[Prompt]]) -> str:
    """Hash over every question, its answer and its images."""
    digest = hashlib.blake2b(digest_size=16)
    for kind, prompts in questions.items():
        for p in prompts:
            digest.update(json.dumps([kind, p.id, p.messages, p.answer, p.verifier]).encode())
            for image in p.images:
                digest.update(image if isinstance(image, bytes) else Path(image).read_bytes())
    return digest.hexdigest()


def answer_questions(
    arm: str,
    path: str | Path,
    questions: dict[str, list[Prompt]],
    settings: Settings,
    score: Score,
    folder: str | Path,
    device: str,
) -> tuple[list[dict], dict]:
    """All answers of the checkpoint at ``path`` and the arm's manifest.  Shows one progress bar.

    Rows are ordered by (set, mode, question, sample), whichever run made them.
    """
    folder = Path(folder) / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    store, manifest_file = folder / f"{arm}.jsonl", folder / f"{arm}.json"
    # the batch only groups the work: it is no part of what the answers are of
    deciding = {name: value for name, value in asdict(settings).items() if name != "batch"}
    manifest = {"arm": arm, "path": str(path), "weights": model_fingerprint(path),
                "questions": questions_fingerprint(questions), "settings": deciding}  # fmt: skip
    known = json.loads(manifest_file.read_text()) if manifest_file.is_file() else {}
    same = all(known.get(name) == manifest[name] for name in ("weights", "questions", "settings"))
    rows = _whole_questions(_read(store), settings.samples) if same else []
    _replace(store, rows)  # drops a torn last line, or another checkpoint's answers
    _replace_text(manifest_file, json.dumps(manifest, indent=1))
    done = {(row["set"], row["mode"], row["id"]) for row in rows}
    modes = ["greedy"] + ["sampled"] * (settings.samples > 0)
    pending = {
        (kind, mode): [i for i, p in enumerate(prompts) if (kind, mode, p.id) not in done]
        for kind, prompts in questions.items()
        for mode in modes
    }
    if any(pending.values()):
        rows += _answer_pending(arm, path, questions, pending, settings, score, store, device)
    place = {(kind, p.id): i for kind, prompts in questions.items() for i, p in enumerate(prompts)}
    kinds = list(questions)
    rows.sort(key=lambda r: (kinds.index(r["set"]), modes.index(r["mode"]), place[r["set"], r["id"]], r["sample"]))
    _replace(store, rows)
    return rows, manifest


def _answer_pending(arm, path, questions, pending, settings: Settings, score: Score, store: Path, device) -> list[dict]:
    import torch
    from tqdm import tqdm

    from vold_nemo.data.templates import eos_ids, load_tokenizer, render_prompt
    from vold_nemo.rollout.engine import EnginePrompt, Sampling
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    tokenizer = load_tokenizer(path)
    stop = tuple(eos_ids(path, tokenizer))
    engine = TransformersEngine(
        path, device=device, dtype=getattr(torch, settings.dtype), batch=settings.batch, stop_ids=stop
    )
    made: list[dict] = []
    total = sum(len(indices) * (1 if mode == "greedy" else settings.samples) for (_, mode), indices in pending.items())
    with tqdm(total=total, desc=f"{arm}: answers", unit="", dynamic_ncols=True) as bar, store.open("a") as file:
        for (kind, mode), indices in pending.items():
            greedy = mode == "greedy"
            sampling = Sampling(
                samples=1 if greedy else settings.samples, temperature=0.0 if greedy else 1.0,
                max_tokens=settings.max_tokens, seed=settings.seed,
            )  # fmt: skip
            # several batches between two writes, so that prompts of like length can still find each other
            block = max(1, 4 * settings.batch // sampling.samples)
            for start in range(0, len(indices), block):
                members = [questions[kind][i] for i in indices[start : start + block]]
                prompts = [
                    EnginePrompt(render_prompt(tokenizer, p.messages), p.images, key=i)
                    for i, p in zip(indices[start : start + block], members, strict=True)
                ]
                found = engine.generate(prompts, sampling, progress=bar.update)
                texts = [tokenizer.decode(c.ids, skip_special_tokens=True) for c in found]
                owners = [members[c.prompt_index] for c in found]
                verdicts = score([(text, p.answer, p.verifier) for text, p in zip(texts, owners, strict=True)])
                rows = [
                    {
                        "set": kind, "id": p.id, "mode": mode, "sample": c.sample, "question": question_text(p),
                        "truth": p.answer, "text": text, "extracted": v.extracted, "reward": v.reward,
                        "reason": v.reason, "finish": c.finish_reason, "tokens": len(c.ids),
                    }
                    for c, p, text, v in zip(found, owners, texts, verdicts, strict=True)
                ]  # fmt: skip
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                made += rows
    return made


def _read(file: Path) -> list[dict]:
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that was being written when the last run was stopped
            break
    return rows


def _whole_questions(rows: list[dict], samples: int) -> list[dict]:
    """Without the questions of which some samples were not written any more."""
    count = Counter((row["set"], row["mode"], row["id"]) for row in rows)
    wanted = {"greedy": 1, "sampled": samples}
    return [row for row in rows if count[row["set"], row["mode"], row["id"]] == wanted[row["mode"]]]


def _replace(file: Path, rows: Iterable[dict]) -> None:
    _replace_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _replace_text(file: Path, text: str) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    aside.write_text(text)
    os.replace(aside, file)
