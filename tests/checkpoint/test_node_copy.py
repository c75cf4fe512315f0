"""A copy on a node's disk is whole or is not used: torn, changed, too large, shared with another job, late."""

import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vold_nemo.checkpoint import node_copy
from vold_nemo.checkpoint.node_copy import Copier, Wanted
from vold_nemo.config import staged
from vold_nemo.config.errors import NodeError

FILES = {"config.json": b"{}", "a.safetensors": bytes(range(256)) * 300, "b.safetensors": b"b" * 70_000, "sub/x.jinja": b"x"}


@pytest.fixture
def hub(tmp_path):
    """A snapshot of the hub cache: its files are links."""
    snapshot = tmp_path / "models--Owner--Model/snapshots/abc"
    for number, (name, content) in enumerate(FILES.items()):
        blob = tmp_path / f"models--Owner--Model/blobs/{number}"
        for file in (blob, snapshot / name):
            file.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(node_copy, "SPARE", 0)
    monkeypatch.setattr(node_copy, "BLOCK", 4096)


def wanted(source: Path, **changes) -> Wanted:
    return Wanted(**{"key": "teacher.path", "source": source, "files": tuple(FILES), **changes})


def run(stage: Path, *models: Wanted, seconds: float = 60, say=lambda line: None) -> tuple[Copier, dict[Path, Path]]:
    copier = Copier(stage, time.monotonic() + seconds, say, every=0.05)
    return copier, copier.run(models)


def test_links_of_a_hub_cache_become_files_that_are_kept(hub, tmp_path):
    stage = tmp_path / "disk"
    copier, copies = run(stage, wanted(hub))
    copy = copies[hub]
    assert copy.parent == stage and copy.name.startswith("models--Owner--Model.")
    assert {name: (copy / name).read_bytes() for name in FILES} == FILES
    assert not any((copy / name).is_symlink() for name in FILES) and not list(copy.rglob("*.part"))
    assert copier.done == copier.total == sum(map(len, FILES.values()))
    assert run(stage, wanted(hub))[0].done == 0


def test_a_copy_that_was_broken_off_is_gone_on_with(hub, tmp_path):
    _, copies = run(tmp_path / "disk", wanted(hub))
    copy = copies[hub]
    (copy / "a.safetensors").unlink()
    (copy / "a.safetensors.part").write_bytes(b"torn")  # of a job that was killed
    (copy / "b.safetensors").write_bytes(b"short")
    copier, copies = run(tmp_path / "disk", wanted(hub))
    assert copier.done == len(FILES["a.safetensors"]) + len(FILES["b.safetensors"])
    assert {name: (copies[hub] / name).read_bytes() for name in FILES} == FILES
    assert not list(copy.rglob("*.part"))


def test_files_that_a_node_does_not_need_are_linked_until_another_job_does(hub, tmp_path):
    few = wanted(hub, files=("config.json", "a.safetensors"), links=("b.safetensors", "sub/x.jinja"))
    _, copies = run(tmp_path / "disk", few)
    other = copies[hub] / "b.safetensors"
    assert other.is_symlink() and other.read_bytes() == FILES["b.safetensors"]
    _, again = run(tmp_path / "disk", wanted(hub))
    assert again == copies and not other.is_symlink()
    run(tmp_path / "disk", few)
    assert not other.is_symlink()  # what is there stays


def test_a_checkpoint_that_was_written_anew_gets_a_folder_of_its_own(hub, tmp_path):
    _, before = run(tmp_path / "disk", wanted(hub))
    (hub / "b.safetensors").resolve().write_bytes(b"c" * 70_000)
    os.utime((hub / "b.safetensors").resolve(), ns=(1, 1))
    _, after = run(tmp_path / "disk", wanted(hub))
    assert before[hub] != after[hub]
    assert (before[hub] / "b.safetensors").read_bytes()[:1] == b"b" and (after[hub] / "b.safetensors").read_bytes()[:1] == b"c"


def test_too_little_room_is_said_before_anything_is_copied(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(node_copy.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(NodeError) as error:
        run(tmp_path / "disk", wanted(hub, key="vold.start"), wanted(hub))
    assert error.value.key == "cluster.launch.stage" and "vold.start 0.0 GB, teacher.path 0.0 GB" in error.value.allowed
    assert "it has 0.0 GB" in error.value.mend and "cluster.launch.stage=null" in error.value.mend
    assert list((tmp_path / "disk").iterdir()) == []


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_half_way_leaves_whole_files_alone(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(node_copy.os, "fsync", full_disk)
    with pytest.raises(NodeError, match="No space left on device"):
        run(tmp_path / "disk", wanted(hub))
    monkeypatch.undo()
    (copy,) = (tmp_path / "disk").iterdir()
    assert [file.name for file in copy.rglob("*") if file.is_file()] == [".lock"]


def test_a_file_that_cannot_be_read_and_one_with_other_contents_are_named(hub, tmp_path):
    right = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert run(tmp_path / "right", wanted(hub, sha256=right))[1]
    with pytest.raises(NodeError) as error:
        run(tmp_path / "wrong", wanted(hub, sha256={**right, "a.safetensors": "0" * 64}))
    assert error.value.key == "teacher.path" and "a.safetensors" in error.value.value and "prefetch.lock" in error.value.allowed
    assert not list((tmp_path / "wrong").rglob("a.safetensors*"))
    with pytest.raises(NodeError, match="Is a directory"):
        run(tmp_path / "wrong", wanted(hub, files=("sub",)))
    with pytest.raises(NodeError, match="No such file"):
        run(tmp_path / "wrong", wanted(hub, files=("nothing",)))


def test_a_folder_that_cannot_be_written_or_is_another_users_is_refused(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="a path that can be written"):
        run(tmp_path / "file/disk", wanted(hub))
    run(tmp_path / "disk", wanted(hub))
    copy = wanted(hub).target(tmp_path / "disk")
    monkeypatch.setattr(node_copy.Wanted, "target", lambda self, stage: copy)
    monkeypatch.setattr(node_copy.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(NodeError, match="another user's"):
        run(tmp_path / "disk", wanted(hub))


def test_a_copy_that_takes_too_long_says_how_far_it_came(hub, tmp_path, monkeypatch):
    read, lines = node_copy._read, []

    def slowly(*arguments):
        time.sleep(0.02)
        return read(*arguments)

    monkeypatch.setattr(node_copy, "_read", slowly)
    with pytest.raises(NodeError, match=r"stage_minutes = 'reached'[\s\S]*of 0.0 GB are there"):
        run(tmp_path / "disk", wanted(hub), seconds=0.2, say=lines.append)
    assert any("GB/s" in line and "s to go" in line for line in lines)


def copy_slowly(stage: str, source: str, block: float, answers) -> None:
    read = node_copy._read
    node_copy._read = lambda *arguments: time.sleep(block) or read(*arguments)
    node_copy.SPARE, node_copy.BLOCK, lines = 0, 4096, []
    copier, copies = run(Path(stage), wanted(Path(source)), say=lines.append)
    answers.put((copier.done, copies, [line for line in lines if "waiting" in line]))


def test_two_jobs_of_a_node_copy_once(hub, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    jobs = [context.Process(target=copy_slowly, args=(str(tmp_path / "disk"), str(hub), 0.05, answers)) for _ in range(2)]
    for job in jobs:
        job.start()
    found = sorted((answers.get(timeout=60) for _ in jobs), key=lambda answer: answer[0])
    for job in jobs:
        job.join()
    assert [done for done, _, _ in found] == [0, sum(map(len, FILES.values()))] and found[0][1] == found[1][1]
    assert len(found[0][2]) == 1 and not found[1][2]  # the one that had nothing to do had waited


def test_who_opens_weights_finds_the_copy_and_what_is_written_down_the_checkpoint(hub, tmp_path, monkeypatch):
    stage = tmp_path / "disk"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert staged.here(hub) == hub
    _, copies = run(stage, wanted(hub))
    names = ("config.json",)
    staged.write_record(stage, {source: (copy, names) for source, copy in copies.items()})
    assert staged.here(hub) == hub
    monkeypatch.setenv("DISK", str(tmp_path))
    monkeypatch.setenv("VOLD_STAGE", "$DISK/disk")
    assert staged.here(hub) == staged.here(str(hub)) == copies[hub] and staged.here(tmp_path) == tmp_path
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # whose copies are not here
    with pytest.raises(NodeError, match=r"VOLD_STAGE = [\s\S]*job_18.json"):
        staged.here(hub)


@pytest.mark.parametrize(("folder", "said"), [("$NOT_SET_HERE/x", "NOT_SET_HERE"), ("relative", "relative")])
def test_a_stage_without_a_place_on_this_node_is_refused(folder, said):
    with pytest.raises(NodeError, match=said):
        staged.expanded(folder)
