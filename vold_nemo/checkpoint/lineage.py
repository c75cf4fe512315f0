"""Where a student comes from: kept beside its weights, in every run, ``.nemo`` file and export.

    lineage.json        run folder, .nemo file
    vold_lineage.json   exported checkpoint

    added_tokens    of the tokenizer in use, as tokenizer.json lists them
    traces          who wrote what stage 1 was trained on: [{teacher, weights, thinking, count}]; null = stage 1 is unknown
    without         ids of data.without, if some were left out when the run was last started

Distillation pays only on top of traces of the same teacher (the paper's table 2: on another model's traces it adds nothing),
and nothing in the weights shows it.  So it is written down, and :func:`strangers` compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vold_nemo.checkpoint import archive_file
from vold_nemo.config import ConfigError
from vold_nemo.config.json_files import parse_object, read_object
from vold_nemo.config.writing import replace_text

IN_RUN, IN_EXPORT = "lineage.json", "vold_lineage.json"
_SAMPLE = 1 << 16
_MEND = "restore it from a copy, or remove it: who wrote the traces is then unknown"


def weights_digest(path: str | Path) -> str | None:
    """16 hex digits that tell checkpoints apart without reading them: names, sizes, and both ends of each weight file.

    The first end holds names and shapes, the last one values.  None where ``path`` is no folder with safetensors.
    """
    digest, files = hashlib.blake2b(digest_size=8), sorted(Path(path).glob("*.safetensors"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLE))
            content.seek(max(0, size - _SAMPLE))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest() if files else None


def strangers(traces: list[dict[str, Any]] | None, teachers: Iterable[str]) -> str | None:
    """A warning where stage 1's traces were not all written by ``teachers`` (paths of stage 2's); None where they were.

    Teachers are the same if their weights' digests are; where one is unknown, if their paths are.
    """
    known = {path: weights_digest(path) for path in teachers}

    def same(entry: dict) -> bool:
        return any(
            entry["weights"] == digest if entry["weights"] and digest else entry["teacher"] == path
            for path, digest in known.items()
        )

    if traces is None:
        return None
    others = [entry for entry in traces if not same(entry)]
    if not others:
        return None
    count, whole = (sum(entry["count"] for entry in some) for some in (others, traces))
    named = sorted({str(entry["teacher"] or "an unknown model") for entry in others})
    return (
        f"{count} of {whole} traces of stage 1 were written by {', '.join(named)}, and "
        f"stage 2 distils {', '.join(known)}: on another model's traces distillation added nothing in the paper (table 2). "
        "Let the teacher itself write them (recipes/generate_traces.py), or distil the model that did"
    )


def read(path: str | Path) -> dict[str, Any]:
    """The lineage of a run folder, a ``.nemo`` file or an exported checkpoint; empty where none was kept.

    :raises ConfigError: one that was kept and cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        for name in (IN_RUN, IN_EXPORT):
            if (path / name).is_file():
                return _checked(read_object(path / name, _MEND), str(path / name))
        path = path / "student.nemo"
    if not path.is_file():
        return {}
    content = archive_file.read(path, IN_RUN)
    return {} if content is None else _checked(parse_object(content, f"{path}: {IN_RUN}", _MEND), str(path))


def _checked(found: dict[str, Any], source: str) -> dict[str, Any]:
    """``found``, with values of the kinds that :func:`write` is given."""
    kinds = {"added_tokens": list, "traces": list | None, "without": list}
    wrong = [key for key, kind in kinds.items() if key in found and not isinstance(found[key], kind)]
    entries = [entry for key in ("added_tokens", "traces") if key not in wrong for entry in found.get(key) or ()]
    needed = {"teacher", "weights", "count"}
    if wrong or not all(isinstance(entry, dict) for entry in entries) or not all(
        needed <= entry.keys() and type(entry["count"]) is int for entry in found.get("traces") or ()
    ):
        raise ConfigError(source, str(found)[:200], "the lineage that a run wrote", _MEND)
    return found


def write(lineage: Mapping[str, Any], file: Path) -> None:
    replace_text(file, json.dumps(lineage, indent=1, ensure_ascii=False) + "\n")
