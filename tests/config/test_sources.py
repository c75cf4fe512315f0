"""Where checkpoints and data lie: homes are expanded in whatever key they stand, before anything is looked for."""

import dataclasses

from vold_nemo.config import Config, DatasetConfig, TeacherConfig
from vold_nemo.config.sources import at_home, with_local_folders


def test_a_home_is_expanded_in_every_text_of_a_configuration(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config, change = Config(), dataclasses.replace
    config = change(
        config,
        student=change(config.student, path="~/student"),
        teachers={"mine": TeacherConfig(path="~/second")},
        evaluate=change(config.evaluate, models={"a": "~/a", "b": "b/~/c"}, image=DatasetConfig(path="~/q.parquet")),
        export=change(config.export, source="~/student", path="~"),
        vold=change(config.vold, start="~x/y"),
    )
    found = with_local_folders(config)
    assert (found.student.path, found.teachers["mine"].path) == ("/home/me/student", "/home/me/second")
    assert (found.export.source, found.export.path) == ("/home/me/student", "/home/me")
    assert found.evaluate.models == {"a": "/home/me/a", "b": "b/~/c"} and found.evaluate.image.path == "/home/me/q.parquet"
    assert found.vold.start == "~x/y"  # another user's home is not guessed


def test_what_has_no_home_stays_what_it_is():
    assert at_home(Config()) == Config() and at_home(["~/a", 3, None])[1:] == [3, None]
