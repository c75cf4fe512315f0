"""One model answers every question; each answer is kept as one line of JSON.

    <folder>/answers/<arm>.jsonl           {"set", "id", "mode": greedy | sampled, "sample", "text", "reward", ...} a line
    <folder>/answers/<arm>.json            what these answers are of: a fingerprint of weights, questions and settings
    <folder>/answers/<arm>.part-2-of-8.*   the same of one part, where several processes share the questions

The answers of a finished arm are read back, not made again; those of an interrupted one are continued where they stopped,
also by another number of processes.  A checkpoint, a question or a setting that changed starts the arm anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vold_nemo.config import ConfigError, VLLMConfig
from vold_nemo.config.writing import replace_text
from vold_nemo.data.pictures import OPENED
from vold_nemo.data.prompts import Prompt, question_text
from vold_nemo.evaluation.answer_row import AnswerRow, as_lines, read_answers
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.megatron import forms, tensors

if TYPE_CHECKING:  # the engine's module needs torch, which the report does without
    from vold_nemo.rollout.engine import RolloutEngine

_DECIDING = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
             "chat_template.jinja", "chat_template.json")  # fmt: skip

Score = Callable[[list[str], list[Prompt]], Sequence]  # responses and their questions -> verdicts


@dataclass(frozen=True)
class Settings:
    """How questions are answered; ``samples`` at ``temperature`` beside the greedy answer."""

    max_tokens: int
    samples: int
    seed: int
    batch: int
    dtype: str
    verifier: str
    temperature: float = 1.0
    engine: str = "transformers"
    vllm: VLLMConfig | None = None


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


def require_whole(arm: str, path: str | Path) -> None:
    """The folder that an arm names holds one set of weights, in the model's own numbers, as training asks for.

    Raises:
        ConfigError: two sets of weights, an adapter, quantised weights, a broken header.
    """
    if not (Path(path) / "config.json").is_file():
        return  # model_fingerprint says so
    try:
        forms.whole_config(Path(path))
        tensors.index(Path(path))
    except ConfigError as error:
        raise ConfigError(f"evaluate.models.{arm}: {error.key}", error.value, error.allowed, error.mend) from error


def questions_fingerprint(prompts: list[Prompt]) -> str:
    """Hash over every question of a set, its answer and its images."""
    digest = hashlib.blake2b(digest_size=16)
    if any(p.images for p in prompts):  # the same file, opened by other rules, is another question
        digest.update(OPENED.encode())
    for p in prompts:
        digest.update(json.dumps([p.id, p.messages, p.answer, p.verifier]).encode())
        for image in p.images:
            digest.update(image if isinstance(image, bytes) else Path(image).read_bytes())
    return digest.hexdigest()


def describe(arm: str, path: str | Path, weights: str, questions: dict[str, str], settings: Settings) -> dict:
    """The arm's manifest: what its answers are of.

    Args:
        weights: :func:`model_fingerprint` of ``path``.
        questions: set -> :func:`questions_fingerprint`; computed once for all arms, since benchmarks hold gigabytes of images.
    """
    # the batch and vLLM's memory only group the work: they are no part of what the answers are of
    deciding = {name: value for name, value in asdict(settings).items() if name not in ("batch", "vllm")}
    return {"arm": arm, "path": str(path), "weights": weights, "questions": questions, "settings": deciding}


def answer_questions(
    manifest: dict,
    questions: dict[str, list[Prompt]],
    settings: Settings,
    score: Score,
    folder: str | Path,
    device: str,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Answer what is still open of the arm, or of part ``part[0]`` of ``part[1]`` of it.  Shows one progress bar."""
    folder, arm = Path(folder) / "answers", manifest["arm"]
    folder.mkdir(parents=True, exist_ok=True)
    number, parts = part
    store = folder / (f"{arm}.jsonl" if parts == 1 else f"{arm}.part-{number}-of-{parts}.jsonl")
    mine, known = _kept(store, manifest, settings.samples)
    others = [
        row for other in _stores(folder, arm) if other != store for row in _kept(other, manifest, settings.samples)[0]
    ]
    _write(store, mine, manifest, known)  # drops a torn last line, or another checkpoint's answers
    done = {(row.set, row.mode, row.id) for row in mine + others}
    pending = {
        (kind, mode): [i for i, p in enumerate(prompts) if i % parts == number and (kind, mode, p.id) not in done]
        for kind, prompts in questions.items()
        for mode in modes_of(settings)
    }
    if any(pending.values()):
        _answer_pending(arm, manifest["path"], questions, pending, settings, score, store, device)


def modes_of(settings: Settings) -> list[str]:
    return ["greedy"] + ["sampled"] * (settings.samples > 0)


def collect(
    manifest: dict, questions: dict[str, list[Prompt]], settings: Settings, score: Score, folder: str | Path
) -> list[AnswerRow] | None:
    """All answers of the arm to these questions, whichever process made them; None while some are missing.

    Rows are ordered by (set, mode, question, sample).  Those that other rules have scored are scored again.
    """
    from vold_nemo.evaluation.scorers import RULES

    folder, arm = Path(folder) / "answers", manifest["arm"]
    rows = {
        (row.set, row.mode, row.id, row.sample): row
        for store in _stores(folder, arm)
        for row in _kept(store, manifest, settings.samples)[0]
    }
    owners = {(kind, p.id): (i, p) for kind, prompts in questions.items() for i, p in enumerate(prompts)}
    found = [row for row in rows.values() if (row.set, row.id) in owners]
    if len(found) != len(owners) * (1 + settings.samples):
        return None
    for row in found:  # a judge's verdict is added later, to the rules' own
        if row.rule_reward is not None:
            row.reward, row.rule_reward = row.rule_reward, None
        row.judge = None
    stale = [row for row in found if row.rules not in (None, RULES)]
    if stale:
        verdicts = score([row.text for row in stale], [owners[row.set, row.id][1] for row in stale])
        for row, v in zip(stale, verdicts, strict=True):
            row.extracted, row.reward, row.reason, row.rules = v.extracted, v.reward, v.reason, RULES
    kinds, modes = list(questions), modes_of(settings)
    found.sort(key=lambda r: (kinds.index(r.set), modes.index(r.mode), owners[r.set, r.id][0], r.sample))
    return found


def keep(manifest: dict, rows: list[AnswerRow], samples: int, folder: str | Path) -> None:
    """Write the whole arm into its one file, together with the answers to other sets that it holds already."""
    store = Path(folder) / "answers" / f"{manifest['arm']}.jsonl"
    before, known = _kept(store, manifest, samples)
    _write(store, rows + [row for row in before if row.set not in manifest["questions"]], manifest, known)


def open_engine(path: str | Path, settings: Settings, device: str, stop: tuple[int, ...]) -> RolloutEngine:
    """The engine that answers: anything that is a ``RolloutEngine``.

    vLLM gets a world of this process alone, whatever launched it, since the parts of an evaluation never wait for each other.
    """
    import torch

    where, dtype = torch.device(device), getattr(torch, settings.dtype)
    if settings.engine == "vllm":
        from vold_nemo.megatron.parallel import join_alone
        from vold_nemo.rollout.vllm_engine import VLLMEngine

        if where.type == "cuda":
            torch.cuda.set_device(where)
        join_alone(where)
        alone = replace(settings.vllm, tensor_parallel=1)
        return VLLMEngine(path, device=where, dtype=dtype, settings=alone, batch=settings.batch, stop_ids=stop)
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(path, device=where, dtype=dtype, batch=settings.batch, stop_ids=stop)


def _answer_pending(arm, path, questions, pending, settings: Settings, score: Score, store: Path, device) -> None:
    from tqdm import tqdm

    from vold_nemo.data.pictures import pixels_digest
    from vold_nemo.data.rendering import Renderer
    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.rollout.engine import EnginePrompt, Sampling

    tokenizer = load_tokenizer(path)
    render = Renderer(tokenizer)
    engine = open_engine(path, settings, device, tuple(eos_ids(path, tokenizer)))
    total = sum(len(indices) * (1 if mode == "greedy" else settings.samples) for (_, mode), indices in pending.items())
    with tqdm(total=total, desc=f"{arm}: answers", unit="", dynamic_ncols=True) as bar, store.open("a") as file:
        for (kind, mode), indices in pending.items():
            greedy = mode == "greedy"
            sampling = Sampling(
                samples=1 if greedy else settings.samples, temperature=0.0 if greedy else settings.temperature,
                max_tokens=settings.max_tokens, seed=settings.seed,
            )  # fmt: skip
            # several batches between two writes, so that prompts of like length can still find each other
            block = max(1, 4 * settings.batch // sampling.samples)
            for start in range(0, len(indices), block):
                members = [questions[kind][i] for i in indices[start : start + block]]
                pictures = [p.open_images() for p in members]
                prompts = [
                    EnginePrompt(ids.tolist(), shown, key=i)
                    for i, ids, shown in zip(
                        indices[start : start + block], render([p.messages for p in members]), pictures, strict=True
                    )
                ]
                found = engine.generate(prompts, sampling, progress=bar.update)
                texts = [tokenizer.decode(c.ids, skip_special_tokens=True) for c in found]
                owners = [members[c.prompt_index] for c in found]
                seen = [[pixels_digest(image) for image in shown] or None for shown in pictures]
                verdicts = score(texts, owners)
                for c, p, text, v in zip(found, owners, texts, verdicts, strict=True):
                    row = AnswerRow(
                        kind, p.id, mode, c.sample, question_text(p), p.answer, text, v.extracted, v.reward, v.reason,
                        c.finish_reason, len(c.ids), pixels=seen[c.prompt_index], **_facts(p),
                    )  # fmt: skip
                    file.write(as_lines([row]))
                file.flush()
    engine.close()  # the next arm's needs the device, and a process holds one vLLM at a time


def _facts(prompt: Prompt) -> dict[str, Any]:
    from vold_nemo.evaluation.scorers import RULES

    return prompt.facts() | {"rules": RULES} if isinstance(prompt, Question) else {}


def _stores(folder: Path, arm: str) -> list[Path]:
    return [folder / f"{arm}.jsonl", *sorted(folder.glob(f"{arm}.part-*-of-*.jsonl"))]


def _kept(store: Path, manifest: dict, samples: int) -> tuple[list[AnswerRow], dict[str, str]]:
    """The rows of a store that are of the same weights and settings, and the fingerprints of their sets.

    A set that is asked about must also be made of the same questions; other sets are kept as they are.
    """
    try:
        known = json.loads(store.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return [], {}
    if any(known.get(name) != manifest[name] for name in ("weights", "settings")) or not isinstance(
        known["questions"], dict
    ):
        return [], {}
    same = {kind: f for kind, f in known["questions"].items() if manifest["questions"].get(kind, f) == f}
    return _whole_questions([row for row in read_answers(store, torn=True) if row.set in same], samples), same


def _whole_questions(rows: list[AnswerRow], samples: int) -> list[AnswerRow]:
    """Without the questions of which some samples were not written any more."""
    count = Counter((row.set, row.mode, row.id) for row in rows)
    wanted = {"greedy": 1, "sampled": samples}
    return [row for row in rows if count[row.set, row.mode, row.id] == wanted[row.mode]]


def _write(store: Path, rows: list[AnswerRow], manifest: dict, known: dict[str, str]) -> None:
    """The rows and their manifest, which goes on naming the sets that are ``known`` already."""
    replace_text(store, as_lines(rows))
    described = {**manifest, "questions": {**known, **manifest["questions"]}}
    replace_text(store.with_suffix(".json"), json.dumps(described, indent=1))
