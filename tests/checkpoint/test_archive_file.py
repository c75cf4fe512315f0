"""A .nemo file is compared with its manifest while it is unpacked: nothing outside, nothing more, nothing other."""

import gzip
import io
import json
import os
import tarfile

import pytest

from vold_nemo.checkpoint import archive_file, lineage
from vold_nemo.config import ConfigError, manifest

FILES = {"model_config.yaml": b"a: 1\n", "weights/__0_0.distcp": b"\x00" * 3000, "lineage.json": b'{"traces": null}'}


@pytest.fixture
def archive(tmp_path):
    stage = tmp_path / "stage"
    for name, content in FILES.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_bytes(content)
    archive_file.pack(stage, tmp_path / "a.nemo", {"step": 4})
    assert not stage.exists()
    return tmp_path / "a.nemo"


def write(path, members, files=None):
    """A tar with a sealed manifest of ``files`` (None = of all plain members), and ``members``: (TarInfo or name, content)."""
    infos = []
    for info, content in members:
        info = tarfile.TarInfo(info) if isinstance(info, str) else info
        info.size = len(content) if info.type == tarfile.REGTYPE else 0
        infos.append((info, content))
    if files is None:
        files = {info.name: _entry(content) for info, content in infos if manifest.is_inside(info.name)}
    said = manifest.text({"format": manifest.FORMAT, "files": files}).encode()
    first = tarfile.TarInfo(manifest.FILE)
    first.size = len(said)
    with tarfile.open(path, "w:") as tar:
        for info, content in [(first, said), *infos]:
            tar.addfile(info, io.BytesIO(content))
    return path


def _entry(content):
    import hashlib

    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_what_was_packed_is_unpacked_and_known_before(archive, tmp_path):
    assert archive_file.about(archive)["step"] == 4
    assert archive_file.read(archive, "model_config.yaml") == b"a: 1\n" and archive_file.read(archive, "other") is None
    assert lineage.read(archive) == {"traces": None}
    folder = archive_file.unpack(archive, tmp_path / "into")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    archive_file.check_folder(folder)
    (folder / "more").write_text("")
    with pytest.raises(ConfigError, match="more: not in manifest"):
        archive_file.check_folder(folder)


def _special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "name,kind,link",
    [("../outside", tarfile.REGTYPE, ""), ("/absolute", tarfile.REGTYPE, ""), ("a/../../b", tarfile.REGTYPE, ""),
     ("link", tarfile.SYMTYPE, "/etc/passwd"), ("hard", tarfile.LNKTYPE, "../x"), ("fifo", tarfile.FIFOTYPE, ""),
     ("device", tarfile.CHRTYPE, ""), ("folder", tarfile.DIRTYPE, ""), ("./twice", tarfile.REGTYPE, "")],
)  # fmt: skip
def test_an_archive_that_reaches_outside_is_refused_whole(name, kind, link, tmp_path):
    bad = write(tmp_path / "bad.nemo", [("good", b"abc"), (_special(name, kind, link), b"abc" * (kind == tarfile.REGTYPE))])
    with pytest.raises(ConfigError, match="outside its own folder"):
        archive_file.unpack(bad, tmp_path / "into")
    assert not (tmp_path / "into").exists() and not (tmp_path / "outside").exists()


def test_members_are_those_of_the_manifest_once_each(tmp_path):
    for members, files, said in (
        ([("a", b"x"), ("a", b"x")], None, "a: twice"),
        ([("a", b"x"), ("b", b"y")], {"a": _entry(b"x")}, "b: not in"),
        ([("a", b"x")], {"a": _entry(b"x"), "b": _entry(b"y")}, "b: missing"),
        ([("a", b"xx")], {"a": _entry(b"x")}, "2 bytes instead of 1"),
        ([("a", b"z")], {"a": _entry(b"x")}, "a: checksum differs"),
    ):
        with pytest.raises(ConfigError, match=said):
            archive_file.unpack(write(tmp_path / "bad.nemo", members, files), tmp_path / "into")
        assert not (tmp_path / "into").exists()


def test_sizes_are_limited_before_anything_is_unpacked(archive, tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.nemo"
    bomb.write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(ConfigError, match="not compressed"):
        archive_file.unpack(bomb, tmp_path / "into")
    sparse = tmp_path / "sparse.nemo"
    holes = tarfile.TarInfo("holes")
    holes.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50), "GNU.sparse.realsize": str(1 << 50)}
    write(sparse, [(holes, b"x")])
    with pytest.raises(ConfigError):
        archive_file.unpack(sparse, tmp_path / "into")
    wide = tmp_path / "wide.nemo"
    wide.write_bytes(archive.read_bytes())
    with pytest.raises(ConfigError, match="free there"):
        monkeypatch.setattr(archive_file.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
        archive_file.unpack(wide, tmp_path / "into")
    assert not (tmp_path / "into").exists()
    long = tmp_path / "long.nemo"
    write(long, [("lineage.json", b" " * (archive_file.SMALL + 1))])
    with pytest.raises(ConfigError, match="at most"):
        lineage.read(long)


def test_every_byte_counts_and_every_cut(archive, tmp_path):
    whole = archive.read_bytes()
    bad = tmp_path / "bad.nemo"
    refused = 0
    for place in range(0, len(whole), 149):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            folder = archive_file.unpack(bad, tmp_path / f"into{place}")
        except ConfigError as error:
            assert str(bad) in str(error)
            refused += 1
        else:  # a byte of a tar that is nobody's: modes, times, padding
            assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert refused > 12
    for length in range(0, len(whole), 1201):
        bad.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"bad\.nemo"):
            archive_file.unpack(bad, tmp_path / f"cut{length}" / "into")
            if length > len(whole) - tarfile.RECORDSIZE:  # only zeros were cut
                raise ConfigError(str(bad), "", "", "")


def test_an_archive_of_before_says_why_it_is_refused(tmp_path):
    with tarfile.open(tmp_path / "old.nemo", "w:") as tar:
        info = tarfile.TarInfo("./model_config.yaml")
        tar.addfile(info, io.BytesIO(b""))
    for act in (archive_file.about, lineage.read, lambda path: archive_file.unpack(path, tmp_path / "x")):
        with pytest.raises(ConfigError, match="earlier version has a pickled index"):
            act(tmp_path / "old.nemo")


def test_a_lineage_of_other_kinds_is_refused_by_name(tmp_path):
    for content in ("[]", "{", '{"traces": 3}', '{"traces": [{}]}', '{"added_tokens": [1]}', ""):
        (tmp_path / "lineage.json").write_text(content)
        with pytest.raises(ConfigError, match=r"lineage\.json"):
            lineage.read(tmp_path)
    (tmp_path / "lineage.json").write_text(json.dumps({"traces": [{"teacher": None, "weights": None, "count": 3}]}))
    assert lineage.read(tmp_path)["traces"][0]["count"] == 3
    os.unlink(tmp_path / "lineage.json")
    assert lineage.read(tmp_path) == {}
