"""Single bytes, cuts, exchanges, emptied files: whatever befalls what a run keeps, it is refused or made again, by name."""

import random
import shutil

import numpy as np
import pytest

from tests.checkpoint.test_loading import _saves, source  # noqa: F401 - a fixture
from vold_nemo.checkpoint import archive_file, loading
from vold_nemo.config import ConfigError
from vold_nemo.data import rendering, token_cache
from vold_nemo.data.traces import SFTExample, TraceCounts

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
COUNT = 100


def flip(file, chance, others):
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def overwrite(file, chance, others):
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place : place + 64] = bytes(b ^ 0x55 for b in content[place : place + 64])
    file.write_bytes(content)


def cut(file, chance, others):
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def empty(file, chance, others):
    file.write_bytes(b"")


def lengthen(file, chance, others):
    file.write_bytes(file.read_bytes() + b"\0")


def remove(file, chance, others):
    file.unlink()


def exchange(file, chance, others):
    other = chance.choice(others)
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


WAYS = [flip, flip, flip, overwrite, cut, empty, lengthen, remove, exchange]


def corrupted(number, folder):
    """Do one harm to one file of ``folder``; says which.  Nothing but white space may be left as it was."""
    chance = random.Random(number)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = chance.choice(files)
    others = [path for path in files if path.read_bytes() != file.read_bytes()]
    way = chance.choice(WAYS if others else WAYS[:-1])
    way(file, chance, others)
    return f"{number}: {way.__name__} {file.relative_to(folder)}"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(source, tmp_path_factory, gloo):  # noqa: F811
    folder = tmp_path_factory.mktemp("run")
    gloo(1).run(_saves, source, folder, 1, 1, [1, 2], 2)
    return folder


def test_no_damaged_checkpoint_is_read(run, tmp_path, caplog):
    for number in range(COUNT):
        folder = shutil.copytree(run, tmp_path / str(number))
        said = corrupted(number, folder / "step_2")
        caplog.clear()
        assert loading.find_latest(folder).name == "step_1", said
        assert str(folder / "step_2") in caplog.text
        corrupted(number + COUNT, folder / "step_1")
        with pytest.raises(ConfigError, match=r"step_2(.|\n)*step_1"):
            loading.find_latest(folder)
        shutil.rmtree(folder)


def test_no_damaged_archive_is_read_as_something_else(run, tmp_path):
    stage = shutil.copytree(run / "step_2", tmp_path / "stage")
    (stage / "manifest.json").unlink()
    whole = contents(stage)
    archive_file.pack(stage, tmp_path / "whole.nemo", {"step": 2})
    refused = 0
    for number in range(COUNT):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copyfile(tmp_path / "whole.nemo", place / "student.nemo")
        said = corrupted(number, place)
        try:
            found = contents(archive_file.unpack(place / "student.nemo", place / "into"))
        except ConfigError as error:
            assert str(place / "student.nemo") in str(error), said
            assert not (place / "into").exists()
            refused += 1
        else:  # of a tar, times, owners and padding are nobody's
            found.pop(next(path for path in found if path.name == "manifest.json"))
            assert found == whole, said
        shutil.rmtree(place)
    assert refused > COUNT // 2


def test_no_damaged_token_cache_is_read(tmp_path):
    examples = [SFTExample(np.arange(n + 5, dtype=np.int32), 3, f"row{n}/0", "math") for n in range(40)]
    token_cache.write(tmp_path / "cache" / "abc", examples, TraceCounts(lines=40, kept=40))
    whole = contents(tmp_path / "cache" / "abc")
    for number in range(COUNT):
        folder = shutil.copytree(tmp_path / "cache" / "abc", tmp_path / str(number) / "abc")
        said = corrupted(number, folder)
        assert contents(folder) != whole and token_cache.damage(folder), said
        shutil.rmtree(folder)
    assert token_cache.damage(shutil.move(tmp_path / "cache" / "abc", tmp_path / "cache" / "other"))


def test_no_damaged_cache_of_prompts_is_read(tmp_path, capsys):
    found = [np.arange(n + 1, dtype=np.int32) if n % 7 else f"reason {n}" for n in range(50)]
    file = tmp_path / "prompts-abc.npz"
    rendering._write(file, found)

    def same(other):
        return other is not None and len(other) == len(found) and all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(found, other, strict=True)
        )

    assert same(rendering._read(file)) and capsys.readouterr().err == ""
    refused = 0
    for number in range(COUNT):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copyfile(file, place / file.name)
        said = corrupted(number, place)
        again, told = rendering._read(place / file.name), capsys.readouterr().err
        assert same(again) or (again is None and (file.name in told or not (place / file.name).exists())), said
        refused += again is None
    assert refused > COUNT // 2
    shutil.copyfile(file, tmp_path / "prompts-other.npz")
    assert rendering._read(tmp_path / "prompts-other.npz") is None and "of other prompts" in capsys.readouterr().err
