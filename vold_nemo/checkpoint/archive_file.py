"""A ``.nemo`` file as a file: a plain tar with a manifest, compared with it while it is unpacked.  No NeMo, no torch.

The manifest is the first member, so that everything is known of what follows before it is read: names, sizes, checksums.  Only
a tar that is not compressed is read: what it unpacks to is no longer than it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vold_nemo.config import ConfigError, manifest
from vold_nemo.config.writing import sync

_BLOCK = 8 << 20
SMALL = 8 << 20  # bytes of a member that is read whole into memory: configuration, lineage


def pack(stage: Path, archive: Path, about: Mapping[str, Any]) -> None:
    """Write the files of folder ``stage``, and a manifest that says ``about`` of them, as ``archive``; ``stage`` goes.

    Nothing is left where it cannot be written, and an earlier ``archive`` stays.
    """
    write_manifest(stage, about)
    packed = archive.with_name(archive.name + ".part")
    try:
        with tarfile.open(packed, "w:", format=tarfile.PAX_FORMAT) as tar:
            for name in (manifest.FILE, *sorted(manifest.read(stage)["files"])):
                tar.add(stage / name, arcname=name, recursive=False)
        sync(packed)
        os.replace(packed, archive)
    except OSError:
        packed.unlink(missing_ok=True)
        raise
    shutil.rmtree(stage)


def write_manifest(stage: Path, about: Mapping[str, Any]) -> None:
    """The manifest of the folder ``stage``, into it."""
    said = {"format": manifest.FORMAT, **about, "files": manifest.describe(stage)}
    (stage / manifest.FILE).write_text(manifest.text(said), encoding="utf-8")


def about(archive: Path) -> dict[str, Any]:
    """The manifest of ``archive``.

    :raises ConfigError: it is none of ours, or cut off before the end of its manifest.
    """
    with _opened(archive) as tar:
        return _manifest(tar, archive)


def read(archive: Path, name: str) -> bytes | None:
    """A small member's bytes, as they were written; None if the archive has no such member.

    :raises ConfigError: as :func:`unpack`, of this member.
    """
    with _opened(archive) as tar:
        known = _manifest(tar, archive)["files"]
        if name not in known:
            return None
        for member in _members(tar, archive, known):
            if member.name == name:
                if member.size > SMALL:
                    raise _refused(archive, f"{name} of {member.size:,} bytes", f"at most {SMALL:,} bytes")
                content = tar.extractfile(member).read()
                if hashlib.sha256(content).hexdigest() != known[name]["sha256"]:
                    raise _refused(archive, f"{name}: checksum differs")
                return content
    raise _refused(archive, f"{name}: missing")


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Extract ``archive`` into ``folder``, each file as the manifest has it; refuse it before anything is written if a member
    is not in the manifest, has another size, would land elsewhere, or is no plain file.

    :raises ConfigError: as said, or a file whose contents differ (``folder`` is removed), or too little room.
    """
    archive, folder = Path(archive), Path(folder)
    with _opened(archive) as tar:
        whole = _manifest(tar, archive)
        known = whole["files"]
        members = list(_members(tar, archive, known))
        if missing := known.keys() - {member.name for member in members}:
            raise _refused(archive, f"{min(missing)}: missing")
        size, there = sum(member.size for member in members), folder.exists()
        around = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        if (free := shutil.disk_usage(around).free) < size:
            raise ConfigError(
                str(archive), f"{size:,} bytes to unpack into {folder}", f"at most the {free:,} that are free there",
                "make room, or set TMPDIR to a larger disk",
            )  # fmt: skip
        try:
            for member in members:
                _extract(tar, member, folder / member.name, known[member.name]["sha256"], archive)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / manifest.FILE).write_text(manifest.text(whole), encoding="utf-8")
        except ConfigError:
            if not there:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def check_folder(folder: Path) -> None:
    """Compare an unpacked archive with its manifest, every byte.

    :raises ConfigError: something differs.
    """
    try:
        said = manifest.problems(folder, manifest.read(folder)["files"])
    except manifest.Damaged as error:
        said = [str(error)]
    if said:
        raise _refused(folder, manifest.shown(said))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, checksum: str, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    summed, source = hashlib.sha256(), tar.extractfile(member)
    with path.open("xb") as file:
        while block := source.read(_BLOCK):
            summed.update(block)
            file.write(block)
    if summed.hexdigest() != checksum:
        raise _refused(archive, f"{member.name}: checksum differs")


def _manifest(tar: tarfile.TarFile, archive: Path) -> dict[str, Any]:
    first = tar.next()
    if first is None or first.name != manifest.FILE or not _is_plain(first):
        raise _refused(
            archive, "no manifest at its beginning", f"an archive of this version, which begins with {manifest.FILE}",
            "an archive of an earlier version has a pickled index: export it with the version that wrote it",
        )  # fmt: skip
    if first.size > manifest.LARGEST:
        raise _refused(archive, f"{manifest.FILE} of {first.size:,} bytes", f"at most {manifest.LARGEST:,} bytes")
    try:
        return manifest.parse(tar.extractfile(first).read())
    except manifest.Damaged as error:
        raise _refused(archive, str(error)) from None


def _members(tar: tarfile.TarFile, archive: Path, known: Mapping[str, Mapping[str, Any]]) -> Iterator[tarfile.TarInfo]:
    """What follows the manifest, each as ``known`` has it."""
    seen = set()
    while (member := tar.next()) is not None:
        if not manifest.is_inside(member.name) or not _is_plain(member):
            raise ConfigError(
                str(archive), member.name, "plain files inside the archive",
                "this .nemo file reaches outside its own folder: do not use it",
            )
        if member.name not in known or member.name in seen:
            raise _refused(archive, f"{member.name}: {'twice' if member.name in seen else f'not in {manifest.FILE}'}")
        if member.size != known[member.name]["bytes"]:
            raise _refused(archive, f"{member.name}: {member.size} bytes instead of {known[member.name]['bytes']}")
        seen.add(member.name)
        yield member


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()  # a sparse file is as long as it says it is


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """``archive``, as long as it can be read as what it is."""
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_Sized(file), mode="r:") as tar:  # type: ignore[call-overload]
            yield tar
    except tarfile.TarError as error:
        raise _refused(archive, f"{type(error).__name__}: {str(error)[:100]}", "a whole tar that is not compressed") from None
    except (OSError, EOFError) as error:
        raise _refused(archive, str(error)[:200], "an archive that can be read and written") from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _refused(archive, str(error)[:200]) from None


class _Sized:
    """A file that says when it ends before what a header promises, where tarfile would give what is there."""

    def __init__(self, file: IO[bytes]):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.tell, self.close, self.name = file.tell, file.close, file.name

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def read(self, size: int = -1) -> bytes:
        """At most what is left: a header that promises more costs no memory."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


def _refused(archive: Path, found: str, allowed: str = "an archive as it was written", mend: str = "") -> ConfigError:
    return ConfigError(
        str(archive), found, allowed,
        mend or "copy it again, or remove it and start its run once more, which writes it from the newest checkpoint",
    )  # fmt: skip
