"""An export is pushed with the environment's token, private unless asked otherwise, and no message holds the token."""

from types import SimpleNamespace
from typing import ClassVar

import httpx
import pytest

from vold_nemo.checkpoint import hub
from vold_nemo.config import ConfigError, ExportConfig

SECRET = "hf_abcdefghijklmnop"


class FakeApi:
    """Stands for huggingface_hub.HfApi: notes what it is asked; ``public`` is what is there, ``fails`` what it raises."""

    calls: ClassVar[list] = []  # one for all, emptied by the fixture
    public, fails = False, None

    def __init__(self, token):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        if FakeApi.fails is not None:
            raise FakeApi.fails

    def repo_info(self, repo_id):
        return SimpleNamespace(private=not FakeApi.public)

    def upload_folder(self, **asked):
        self.calls.append(("upload", asked))
        if FakeApi.fails is not None:
            raise FakeApi.fails
        return SimpleNamespace(commit_url="https://hub/me/mine/commit/1")


@pytest.fixture
def calls(monkeypatch):
    import huggingface_hub

    FakeApi.calls, FakeApi.public, FakeApi.fails = [], False, None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return FakeApi.calls


def test_a_push_makes_a_private_repository_and_replaces_the_weights_of_an_earlier_one(calls, tmp_path):
    options = ExportConfig(push="me/mine")
    hub.prepare(options)
    assert hub.push(tmp_path, options) == "https://hub/me/mine/commit/1"
    assert calls[0] == ("token", SECRET) and calls[1] == ("create", "me/mine", True, True)
    name, asked = calls[-1]
    assert name == "upload" and (asked["repo_id"], asked["folder_path"]) == ("me/mine", tmp_path)
    assert asked["delete_patterns"] == ["*.safetensors", "*.safetensors.index.json"]


def test_a_public_repository_takes_nothing_that_was_to_be_private(calls):
    FakeApi.public = True
    with pytest.raises(ConfigError, match=r"export\.private"):
        hub.prepare(ExportConfig(push="me/mine"))
    hub.prepare(ExportConfig(push="me/mine", private=False))
    assert calls[-1] == ("create", "me/mine", False, True)


ERRORS = [OSError("no route"), ConnectionError("offline mode"), httpx.ConnectError(f"refused {SECRET}"), httpx.ReadTimeout("")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_goes_wrong_with_the_hub_is_an_error_of_the_key_without_the_token(calls, tmp_path, error):
    FakeApi.fails = error
    for step in (lambda: hub.prepare(ExportConfig(push="me/mine")), lambda: hub.push(tmp_path, ExportConfig(push="me/mine"))):
        with pytest.raises(ConfigError, match=r"export\.push") as told:
            step()
        assert type(error).__name__ in str(told.value) and SECRET not in str(told.value) and told.value.__suppress_context__


@pytest.mark.parametrize("token", [None, "", "  "])
def test_without_a_token_nothing_is_asked_and_the_message_says_where_it_belongs(calls, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=r"HF_TOKEN.*environment"):
        hub.prepare(ExportConfig(push="me/mine"))
    assert not calls


@pytest.mark.parametrize("name", ["mine", "me/mine/too", "/mine", "me/", "me/a b", "me/..", "../mine", "me/a--b", "me/x.git",
                                  "https://hub/me/mine"])  # fmt: skip
def test_a_name_that_the_hub_has_no_place_for_is_refused(calls, name):
    with pytest.raises(ConfigError, match=r"export\.push"):
        hub.prepare(ExportConfig(push=name))
    assert not calls


def test_a_dry_run_tells_the_push_and_hides_the_token(calls, monkeypatch, tmp_path):
    said = hub.describe(ExportConfig(push="me/mine"), tmp_path)
    assert "me/mine" in said and "private" in said and "HF_TOKEN is set" in said and SECRET not in said
    monkeypatch.delenv("HF_TOKEN")
    said = hub.describe(ExportConfig(push="me/mine", private=False), tmp_path)
    assert "public" in said and "HF_TOKEN is not set" in said and not calls
