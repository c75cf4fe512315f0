"""Traces are tokenised once: what is mapped from disk is what the reader gave, under a name that only the same input has."""

import shutil

import numpy as np
import pytest

from tests.data.test_traces import ENDS, trace, write
from vold_nemo.config import ConfigError
from vold_nemo.data import token_cache
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.token_cache import StoredExamples, fingerprint, tokenizer_settings
from vold_nemo.data.traces import TraceCounts, load_traces, read_traces
from vold_nemo.miniature.tokenizer import ENDOFTEXT, ID, IM_END, build_tokenizer


def lines():
    yield trace("a", source="math")
    yield b"not JSON\n"
    yield trace("b", sample=1, ids=[ID["="], ID["0"], ID[ENDOFTEXT]], source="code")
    yield trace("c", response_ids=None, response="6+4=0")


def options(tmp_path):
    return {"max_length": 64, "rejected": Rejected(tmp_path / "rejected.jsonl", 1.0), "end_ids": ENDS}


def test_stored_examples_are_those_that_were_read_and_lie_in_a_mapped_file(tmp_path):
    path = write(tmp_path / "t.jsonl", *lines())
    expected, counts = load_traces(path, build_tokenizer(), **options(tmp_path))
    found = TraceCounts()
    examples = read_traces(path, build_tokenizer(), found, **options(tmp_path))
    token_cache.write(tmp_path / "cache" / "x", examples, found, tmp_path / "rejected.jsonl")
    stored = StoredExamples(tmp_path / "cache" / "x")
    assert (len(stored), stored.counts, stored.source_of_each()) == (3, counts, ["math", "code", None])
    for one, other in zip(stored, expected, strict=True):
        assert (one.name, one.source, one.prompt_length) == (other.name, other.source, other.prompt_length)
        assert np.array_equal(one.ids, other.ids) and isinstance(one.ids.base, np.memmap)
    assert (stored.folder / "rejected.jsonl").read_text().count("not JSON") >= 1
    assert [path.name for path in stored.folder.parent.iterdir()] == ["x"]  # nothing left beside it


def test_a_trace_of_text_is_read_by_the_students_tokenizer_and_ended_once(tmp_path):
    texts = [trace("a", response_ids=None, response="6+4=0"), trace("b", response_ids=None, response="6<|im_end|>0")]
    (first, second), _ = load_traces(write(tmp_path / "t.jsonl", *texts), build_tokenizer(), **options(tmp_path))
    assert first.ids[first.prompt_length :].tolist() == [ID[t] for t in "6+4=0"] + [ID[IM_END]]
    assert second.ids[second.prompt_length :].tolist().count(ID[IM_END]) == 1


def test_a_name_changes_with_a_byte_of_the_traces_the_tokenizer_or_a_setting(tmp_path):
    path, tokenizer = write(tmp_path / "t.jsonl", *lines()), build_tokenizer()
    same = fingerprint([path], tokenizer_settings(tokenizer))
    shutil.copyfile(path, tmp_path / "copy.jsonl")
    assert fingerprint([tmp_path / "copy.jsonl"], tokenizer_settings(build_tokenizer())) == same
    other = build_tokenizer()
    other.chat_template += " "
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"B"'))
    names = {same, fingerprint([path], tokenizer_settings(tokenizer)), fingerprint([tmp_path / "copy.jsonl"], {}),
             fingerprint([tmp_path / "copy.jsonl"], tokenizer_settings(other))}  # fmt: skip
    assert len(names) == 4


def share(folder, source):
    """Two ranks of one node, each with a cache of its own making counted."""
    import torch.distributed as dist

    rank, made = dist.get_rank(), []

    def build(path):
        made.append(path.name)
        counts = TraceCounts()
        found = read_traces(
            source, build_tokenizer(), counts, max_length=64, rejected=Rejected(None, 0.5), end_ids=ENDS
        )
        token_cache.write(path, found, counts)

    said = []
    for _ in range(2):
        try:
            path = token_cache.cache_folder(folder, build, rank=rank, local_rank=rank, named=lambda: fingerprint([source], {}))
            said.append([example.ids.tolist() for example in StoredExamples(path)])
        except ConfigError as error:
            said.append(str(error))
    return made, said


def test_one_rank_tokenises_for_all_and_once_and_all_leave_with_its_error(tmp_path, gloo):
    good, bad = write(tmp_path / "good.jsonl", *lines()), write(tmp_path / "bad.jsonl", b"not JSON\n", trace())
    (made, said), (idle, heard) = gloo(2).run(share, tmp_path / "cache", good)
    assert (len(made), idle) == (1, []) and said == heard and said[0] == said[1] and len(said[0]) == 3
    bad.write_bytes(b"not JSON\n" * 3 + bad.read_bytes())
    (_, said), (_, heard) = gloo(2).run(share, tmp_path / "cache", bad)
    assert said == heard and "rows rejected" in said[0]


def alone(folder, source):
    """What one process gets from the cache, and what it printed."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as said:
        made, found = share(folder, source)
    return made, found[-1], said.getvalue()


def test_a_damaged_cache_is_made_again_aloud(tmp_path, gloo):
    source, cache = write(tmp_path / "good.jsonl", *lines()), tmp_path / "cache"
    ((made, whole, said),) = gloo(1).run(alone, cache, source)
    assert len(made) == 1 and said == ""
    (folder,) = cache.iterdir()
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for other in (b"", content[:-2], content[:5] + bytes([content[5] ^ 1]) + content[6:], None):
            file.unlink() if other is None else file.write_bytes(other)
            ((made, found, said),) = gloo(1).run(alone, cache, source)
            assert (len(made), found) == (1, whole) and "is damaged and is made again" in said and file.name in said
            assert list(cache.iterdir()) == [folder]  # nothing left beside it
    for left in folder.iterdir():
        left.unlink()
    ((made, found, said),) = gloo(1).run(alone, cache, source)
    assert (len(made), found) == (1, whole) and "manifest.json" in said
    folder.rename(cache / "another")
    (cache / "another").rename(folder.with_name(folder.name[::-1]))
    assert "of '" in token_cache.damage(folder.with_name(folder.name[::-1]))


def without_room(folder, source, temporary):
    import tempfile

    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        return alone(folder, source)
    finally:
        tempfile.tempdir = before


def test_a_cache_without_room_is_kept_by_each_node(tmp_path, gloo):
    source, file = write(tmp_path / "good.jsonl", *lines()), tmp_path / "file"
    file.write_text("")  # no folder can be made below it, by nobody
    (tmp_path / "tmp").mkdir()
    ((made, found, said),) = gloo(1).run(without_room, file / "cache", source, tmp_path / "tmp")
    assert len(found) == 3 and "cannot be written" in said and f"{tmp_path}/tmp" in said
    ((made, again, _),) = gloo(1).run(without_room, file / "cache", source, tmp_path / "tmp")
    assert made[-1:] and again == found
    ((_, refused, _),) = gloo(1).run(without_room, file / "cache", source, file)
    assert "data.cache" in refused and "room" in refused


@pytest.mark.parametrize("response", [None, "", 7, "\ud800"])
def test_a_trace_without_ids_or_text_is_rejected(tmp_path, response):
    path = write(tmp_path / "t.jsonl", trace(), trace("b", response_ids=None, response=response))
    chosen = options(tmp_path)
    assert len(load_traces(path, build_tokenizer(), **chosen)[0]) == 1
    assert chosen["rejected"].count() == 1
