"""A copy on a node's disk is read as long as it is its checkpoint's; else the ranks are told to stage again."""

import pytest

from vold_nemo.config import staged
from vold_nemo.config.errors import NodeError


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint, its copy, and the record of both in VOLD_STAGE."""
    source, copy, stage = tmp_path / "base", tmp_path / "stage/base.0", tmp_path / "stage"
    for folder in (source, copy):
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("as it was")
    monkeypatch.setenv(staged.VARIABLE, str(stage))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    staged.write_record(stage, {source: (copy, ("config.json", "model.safetensors"))})
    staged._known.cache_clear()
    return source, copy


def test_a_copy_is_read_in_place_of_its_checkpoint(checkpoint):
    source, copy = checkpoint
    assert staged.here(source) == copy and staged.here(source.parent / "other") == source.parent / "other"


@pytest.mark.parametrize("change", ["written anew", "gone"])
def test_a_copy_of_what_a_checkpoint_was_is_refused(checkpoint, change):
    source, copy = checkpoint
    if change == "gone":
        (copy / "model.safetensors").unlink()
    else:
        (source / "model.safetensors").write_text("other weights")
    with pytest.raises(NodeError, match="on every node again") as error:
        staged.here(source)
    assert error.value.key == staged.VARIABLE and str(copy) in str(error.value.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"base": 1}', "null"])
def test_a_record_that_is_none(checkpoint, text):
    file = next(checkpoint[0].parent.glob("stage/*.json"))
    file.write_text(text)
    staged._known.cache_clear()
    with pytest.raises(NodeError, match="as staging leaves it"):
        staged.copies()


def test_a_variable_that_is_no_folder_is_named_itself(monkeypatch):
    monkeypatch.setenv(staged.VARIABLE, "relative")
    with pytest.raises(NodeError) as error:
        staged.copies()
    assert error.value.key == staged.VARIABLE
