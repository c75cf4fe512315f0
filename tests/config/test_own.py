"""Files of one's own stand before those that come with the package: --config-dir first, then ./conf."""

from pathlib import Path

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.own import own_folders, shadowed
from vold_nemo.config.places import conf, root
from vold_nemo.config.translate import as_config_error

MINE = "# @package _global_\ndefaults: [miniature, _self_]\nseed: {seed}\n"


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refused(*overrides: str, config_dir: Path | None = None) -> ConfigError:
    with pytest.raises(Exception) as caught:  # whatever Hydra raises: the translation is what is tested
        compose(list(overrides), config_dir=str(config_dir) if config_dir else None)
    (error,) = as_config_error(caught.value, list(overrides))
    return error


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("named", [False, True], ids=["./conf", "--config-dir"])
def test_an_experiment_of_ones_own_is_found(here, tmp_path, named):
    folder = tmp_path / "else" if named else here / "conf"
    file = write(folder, "experiment/mine.yaml", MINE.format(seed=7))
    given = str(folder) if named else None
    config = compose(["experiment=mine"], config_dir=given)
    assert (config.seed, config.name, config.vold.steps) == (7, "miniature", 70)
    assert "did you mean experiment=mine?" in refused("experiment=mien", config_dir=folder if named else None).mend
    file.write_text("# @package _global_\nsft: {stpes: 3}\n")
    error = refused("experiment=mine", config_dir=folder if named else None)
    assert error.key == "sft.stpes" and "sft.steps" in error.mend


def test_the_nearer_folder_wins(here, tmp_path):
    write(here / "conf", "parallel/tp2.yaml", "tensor: 4\n")
    write(tmp_path / "else", "parallel/tp2.yaml", "tensor: 8\n")
    assert compose(["parallel=tp2"]).parallel.tensor == 4
    assert compose(["parallel=tp2"], config_dir=str(tmp_path / "else")).parallel.tensor == 8
    assert compose(["parallel=tp4"], config_dir=str(tmp_path / "else")).parallel.tensor == 4  # the shipped one
    (here / "conf" / "parallel" / "tp2.yaml").unlink()
    assert compose(["parallel=tp2"]).parallel.tensor == 2


def test_options_of_a_group_are_listed_with_ones_own(here):
    write(here / "conf", "student/mine.yaml", "path: a\n")
    assert compose(["student=mine"]).student.path == "a"
    assert "did you mean student=mine?" in refused("student=mien").mend


def test_the_folder_of_another_program_is_left_alone(here, monkeypatch):
    write(here / "conf", "config.yaml", "defaults: [db: mysql]\n")
    write(here / "conf", "parallel/tp2.yaml", "tensor: 4\n")
    assert own_folders() == [] and compose(["parallel=tp2"]).parallel.tensor == 2
    monkeypatch.chdir(root())
    assert own_folders() == []  # in the checkout ./conf is the shipped one


def test_a_config_dir_that_is_not_there_is_named(here):
    assert refused("seed=1", config_dir=here / "nowhere").key == "--config-dir"


def test_what_stands_in_for_a_shipped_file_is_known_unless_it_is_the_same(here):
    write(here / "conf", "experiment/mine.yaml", MINE.format(seed=7))
    write(here / "conf", "parallel/tp4.yaml", (conf() / "parallel/tp4.yaml").read_text())
    write(here / "conf", "cluster/my_site.yaml", "gpus_per_node: 8\n")  # a form, filled in
    assert shadowed(here / "conf") == []
    write(here / "conf", "parallel/tp4.yaml", "tensor: 3\n")
    assert shadowed(here / "conf") == ["parallel/tp4.yaml"]
