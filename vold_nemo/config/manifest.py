"""What a folder should hold, file by file, and its own digest: ``manifest.json`` of checkpoints, archives and caches.

    {"format": 2, ..., "files": {"shards/__0_0.distcp": {"bytes": 81, "sha256": "…"}, ...}, "digest": "…"}

A manifest is JSON and nothing else is believed before it: names stay inside the folder, what it does not name is not there, and
sizes are compared before a byte of a file is read.  ``digest`` is the SHA-256 of all the rest, so a changed step, layout or
checksum shows as well as a changed shard.  It keeps accidents out, and files of other hands from being read as something else;
who may rewrite the folder may rewrite it, which gives them other numbers, and no more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

FILE = "manifest.json"
FORMAT = 2
LARGEST = 64 << 20  # bytes of a manifest: one of a hundred thousand files has a quarter of it
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5


class Damaged(ValueError):
    """A manifest that cannot be believed, and why."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its digest."""
    return {**content, "digest": _digest(content)}


def text(content: Mapping[str, Any]) -> str:
    """The file, sealed (again)."""
    return json.dumps(sealed({key: value for key, value in content.items() if key != "digest"}), indent=1) + "\n"


def parse(data: bytes) -> dict[str, Any]:
    """The manifest that ``data`` is.

    :raises Damaged: another format, another digest, or no manifest at all.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{FILE}: {str(error)[:100]}") from None
    if not isinstance(found, dict) or "format" not in found:
        raise Damaged(f"{FILE}: no manifest of ours")
    if found["format"] == 1:
        raise Damaged(
            f"{FILE}: format 1, of a version whose index of tensors is a pickle, which may run code when it is read; "
            f"this version reads format {FORMAT}: export it with the version that wrote it"
        )
    if found["format"] != FORMAT or isinstance(found["format"], bool):
        raise Damaged(f"{FILE}: format {str(found['format'])[:20]}, this version reads {FORMAT}")
    if found.get("digest") != _digest(found):
        raise Damaged(f"{FILE}: its digest differs from its contents")
    files = found.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise Damaged(f"{FILE}: files that are not names inside the folder, each with bytes and sha256")
    return found


def read(folder: str | Path) -> dict[str, Any]:
    """:func:`parse` of ``folder``'s own.

    :raises Damaged: also where it cannot be read.
    """
    path = Path(folder) / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise Damaged(f"{FILE}: larger than {LARGEST:,} bytes")
        return parse(path.read_bytes())
    except OSError as error:
        raise Damaged(f"{FILE}: {error.strerror or error}") from None


def misfits(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What of ``folder`` is missing, too long or short, no plain file, or not named in ``files``; no contents are read."""
    said = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            said.append(f"{name}: missing")
        elif (size := path.stat().st_size) != entry["bytes"]:
            said.append(f"{name}: {size} bytes instead of {entry['bytes']}")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in files and name != FILE:
            said.append(f"{name}: not in {FILE}")
    return said


def problems(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """:func:`misfits`, or, if there are none, the files whose contents differ."""
    return misfits(folder, files) or [
        f"{name}: checksum differs" for name, entry in files.items() if describe_file(folder / name) != dict(entry)
    ]


def describe_file(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """Bytes and SHA-256 of a file, which is read for it where its ``checksum`` is not known yet."""
    if checksum is None:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": checksum}


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """``files`` of all that lies in ``folder`` now, but a manifest of its own."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: describe_file(folder / name) for name in names if name != FILE}


def shown(said: list[str]) -> str:
    """Some of ``said``, for a message."""
    return "; ".join(said[:_SHOWN]) + (f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")


def _digest(content: Mapping[str, Any]) -> str:
    whole = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_entry(name: str, entry: Any) -> bool:
    return (
        is_inside(name) and name != FILE and isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}
        and type(entry["bytes"]) is int and entry["bytes"] >= 0
        and isinstance(entry["sha256"], str) and _SHA256.fullmatch(entry["sha256"]) is not None
    )  # fmt: skip


def is_inside(name: str) -> bool:
    """Whether ``name`` is that of a file below the folder that it is looked for in, in its plainest spelling."""
    path = PurePosixPath(name)
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts and str(path) == name != "."
