"""The pack for a machine without a network: kernels of one architecture, a size that is kept to, scripts that are whole."""

import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu import fatbin, pack


def image(kind: int, arch: int, payload: bytes) -> bytes:
    """An entry of a region: a header of 64 bytes and its payload."""
    return struct.pack("<HHIQ", kind, 0x101, 64, len(payload)) + bytes(12) + struct.pack("<I", arch) + bytes(32) + payload


def region(*images: bytes) -> bytes:
    body = b"".join(images)
    return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(body)) + body


def elf(section: bytes, name: str = fatbin.SECTION) -> bytearray:
    """A 64-bit ELF file with one section of its own, as far as anybody reads it here."""
    names = b"\0.shstrtab\0" + name.encode() + b"\0"
    start = 64
    table = start + len(section) + len(names)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    rows = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 11, 1, 0, 0, start, len(section), 0, 0, 8, 0),
        struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, start + len(section), len(names), 0, 0, 1, 0),
    ]
    return bytearray(head + section + names + b"".join(rows))


KERNELS = {80: b"A" * 4096, 90: b"H" * 8192, 100: b"B" * 2048}


def library() -> bytearray:
    """Two regions with padding between them, as linkers leave it."""
    first = region(image(2, 80, KERNELS[80]), image(2, 90, KERNELS[90]))
    return elf(first + bytes(24) + region(image(2, 100, KERNELS[100]), image(1, 90, b"P" * 512)))


def test_one_architecture_is_kept_and_nothing_moves():
    data = library()
    before = bytes(data)
    assert fatbin.by_architecture(data) == {80: 4096, 90: 8192 + 512, 100: 2048}
    assert fatbin.keep(data, 90) == 4096 + 2048 and len(data) == len(before)
    assert KERNELS[90] in data and b"P" * 512 in data and KERNELS[80] not in data and KERNELS[100] not in data
    moved = [i for i, (a, b) in enumerate(zip(before, data, strict=True)) if a != b]
    assert {before[i] for i in moved} == {ord("A"), ord("B")}  # headers, names and tables are as they were
    assert fatbin.by_architecture(data) == fatbin.by_architecture(before)


TOO_LONG = region(struct.pack("<HHIQ", 2, 0x101, 64, 1 << 40) + bytes(12) + struct.pack("<I", 90) + bytes(32))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no library", "ELF"), (elf(b"x" * 64, ".text"), "no section"), (library(), "has 80, 90, 100"),
        (elf(TOO_LONG), "beyond"),
    ],
)  # fmt: skip
def test_what_is_no_such_library_is_refused_by_name(data, said):
    with pytest.raises(ValueError, match=said):
        fatbin.keep(bytearray(data), 70)


def wheel(folder: Path, data: bytes) -> Path:
    file = folder / "transformer_engine_cu13-2.20.2-py3-none-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("transformer_engine/wheel_lib/libtransformer_engine.so", data)
        archive.writestr("transformer_engine_cu13-2.20.2.dist-info/METADATA", "Version: 2.20.2\n")
    return file


def test_the_core_library_travels_with_its_metadata_and_the_kernels_of_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)  # strip wants a whole ELF file
    source = wheel(tmp_path, bytes(library()))
    (tmp_path / "engine").mkdir()
    pack.shrink(source, tmp_path / "engine", 90)
    there = lzma.decompress((tmp_path / "engine/libtransformer_engine.so.xz").read_bytes())
    assert KERNELS[90] in there and KERNELS[80] not in there
    assert (tmp_path / "engine/where").read_text() == "transformer_engine/wheel_lib/libtransformer_engine.so\n"
    assert (tmp_path / "engine/transformer_engine_cu13-2.20.2.dist-info/METADATA").is_file()
    with pytest.raises(SystemExit, match="no kernels for architecture 70"):
        pack.shrink(source, tmp_path / "engine", 70)


def test_a_pack_above_the_limit_is_refused_and_names_what_is_large(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/large.whl").write_bytes(bytes(3 << 20))
    (tmp_path / "wheels/small.whl").write_bytes(bytes(1 << 10))
    with pytest.raises(SystemExit) as refused:
        pack.measured(tmp_path, 1 << 20, 3.5)
    assert "4.0 MiB" in str(refused.value) and "wheels/large.whl 3.0" in str(refused.value) and "--there" in str(refused.value)
    assert pack.measured(tmp_path, 1 << 20, 60) == (4 << 20) + (1 << 10)
    assert set(json.loads((tmp_path / "pack.json").read_text())["files"]) == {"wheels/large.whl", "wheels/small.whl"}


def test_what_the_machine_has_is_read_from_its_list_and_every_package_has_a_pin():
    found = pack.names_in("torch==2.11.0+cu130\nPyYAML==6.0\n\nhuggingface_hub 1.33.0\n")
    assert found == {"torch", "pyyaml", "huggingface-hub"}
    assert {*pack.WHEELS, *pack.COMMON, *pack.SOURCES} <= set(pack.pins())


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "here").write_text("")
    with pytest.raises(SystemExit, match="not empty"):
        pack.main([str(tmp_path)])


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in files)
    with zipfile.ZipFile(file, "w") as archive:
        for one, text in files.items():
            archive.writestr(one, text)
    return file


@pytest.mark.long
def test_on_the_machine_all_is_installed_put_together_and_the_items_are_asked_for(tmp_path):
    for name in ("wheels", "engine", "extension", "aside"):
        (tmp_path / name).mkdir()
    write_wheel(tmp_path / "wheels", "packed_one", {"packed_one.py": "value = 1"})
    extension = write_wheel(tmp_path / "aside", "packed_extension", {"packed_extension.py": "value = 2"}).read_bytes()
    for number, start in enumerate(range(0, len(extension), 400)):  # as split(1) leaves them
        piece = tmp_path / f"extension/packed_extension-1.0-py3-none-any.whl.{number:02}"
        piece.write_bytes(extension[start : start + 400])
    (tmp_path / "engine/where").write_text("packed_engine/lib/libtransformer_engine.so\n")
    (tmp_path / "engine/libtransformer_engine.so.xz").write_bytes(lzma.compress(b"a library"))
    (tmp_path / "engine/packed_engine-1.0.dist-info").mkdir()
    for script in pack.SCRIPTS.glob("*.sh"):
        shutil.copy(script, tmp_path)
    site = tmp_path / "site"
    done = subprocess.run(
        ["bash", str(tmp_path / "run.sh"), str(tmp_path / "out"), str(pack.ROOT), "--only", "import"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "SITE": str(site), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2 and "no GPU" in done.stderr, done.stdout + done.stderr  # the items' own word
    assert (site / "packed_engine/lib/libtransformer_engine.so").read_bytes() == b"a library"
    assert (site / "packed_one.py").is_file() and (site / "packed_extension.py").is_file()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck")
def test_shellcheck_finds_nothing():
    scripts = [*sorted(pack.SCRIPTS.glob("*.sh")), pack.ROOT / "slurm/acceptance.sbatch"]
    done = subprocess.run(["shellcheck", "-x", *map(str, scripts)], capture_output=True, text=True, cwd=pack.ROOT)
    assert len(scripts) == 4 and not done.stdout, done.stdout
