"""recipes/prefetch.py: a lock file of hashes; what is missing, partial or changed is found without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vold_nemo.config import Config, ConfigError, DataConfig, DatasetConfig, StudentConfig, TeacherConfig
from vold_nemo.planning.prefetch import check_lock, needs, write_lock

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A hub cache in huggingface_hub's own layout with one model, a local teacher, a data file; and the configuration."""
    hub = tmp_path / "hub"
    student = hub / "models--org--student" / "snapshots" / COMMIT
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    (student / "model.safetensors").write_bytes(b"weights" * 100)
    refs = hub / "models--org--student" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1"}\n')
    import huggingface_hub

    real = huggingface_hub.snapshot_download  # its own offline path over the cache; nothing is ever downloaded here

    def offline(repo_id, *, repo_type, revision, local_files_only, ignore_patterns):
        return real(repo_id, repo_type=repo_type, revision=revision, local_files_only=True, cache_dir=hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    config = Config(
        student=StudentConfig(path="org/student"), teacher=TeacherConfig(path=str(tmp_path / "teacher")),
        data=DataConfig(prompts=DatasetConfig(path=str(tmp_path / "prompts.jsonl"))),
    )
    return config, tmp_path, student


def test_the_lock_names_commit_sizes_and_hashes_and_then_all_is_well(world):
    config, folder, _ = world
    lock = folder / "lock.json"
    write_lock(config, lock, say=lambda line: None)
    entries = {entry["key"]: entry for entry in json.loads(lock.read_text())["needs"]}
    assert entries.keys() == {"student.path", "teacher.path", "data.prompts.path"}
    assert entries["student.path"]["revision"] == COMMIT and entries["student.path"]["path"] == "org/student"
    assert entries["student.path"]["files"]["model.safetensors"]["bytes"] == 700
    assert len(entries["data.prompts.path"]["files"]["prompts.jsonl"]["sha256"]) == 64
    assert check_lock(config, lock) == []


@pytest.mark.parametrize(
    ("spoil", "key", "words"),
    [
        (lambda s: (s / "model.safetensors").unlink(), "student.path", "model.safetensors is missing"),
        (lambda s: (s / "model.safetensors").write_bytes(b"weights"), "student.path", "is 7 bytes"),
        (lambda s: (s / "model.safetensors").write_bytes(b"WEIGHTS" * 100), "student.path", "has other contents"),
        (lambda s: s.rename(s.with_name("gone")), "student.path", "org/student"),
    ],
    ids=["missing", "partial", "changed", "no-snapshot"],
)
def test_what_is_not_as_locked_is_found_by_name(world, spoil, key, words):
    config, folder, student = world
    write_lock(config, folder / "lock.json", say=lambda line: None)
    spoil(student)
    (error,) = check_lock(config, folder / "lock.json")
    assert error.key == key and words in str(error) and "prefetch" in error.mend


def test_a_fetch_that_fails_gives_the_hubs_own_reason(world):
    config, folder, _ = world
    config.student.path = "org/unknown"
    with pytest.raises(ConfigError, match=r"org/unknown at main(.|\n)*HF_TOKEN(.|\n)*LocalEntryNotFoundError: \w+"):
        write_lock(config, folder / "lock.json", say=lambda line: None)
    assert not (folder / "lock.json").exists()


def test_without_a_lock_file_the_message_says_what_to_do(world):
    config, folder, _ = world
    (error,) = check_lock(config, folder / "none.json")
    assert error.key == "prefetch.lock" and "run recipes/prefetch.py first" in error.mend


def test_a_snapshot_in_the_cache_goes_by_its_hub_id(world):
    config, _, student = world
    config.student.path = str(student)
    assert needs(config)[0].path == "org/student" and Path(needs(config)[1].path).name == "teacher"
