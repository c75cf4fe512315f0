"""An export goes to the Hugging Face hub: ``export.push=user/name``.

The token comes from the environment alone (``HF_TOKEN``), and no message, log or file of ours ever holds it.  The repository
is made, or found, before the export begins: a token that may not write is found out in a second, not in an hour.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vold_nemo.config import ConfigError, ExportConfig

KEY = "export.push"
TOKEN = "HF_TOKEN"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]{0,95}")
# Of an earlier push with other shards: two sets of weights in one repository would be read differently by different tools.
_REPLACED = ["*.safetensors", "*.safetensors.index.json"]


def check_name(repo: str) -> None:
    """:raises ConfigError: unless ``repo`` has the form user/name."""
    if not _NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise ConfigError(KEY, repo, "user/name or organisation/name", "name the repository as the hub does")


def token() -> str:
    """:raises ConfigError: where the environment has none."""
    found = os.environ.get(TOKEN, "").strip()
    if not found:
        raise ConfigError(TOKEN, "not set in the environment", f"a token that may write, for {KEY}",
                          f"make one in the hub's settings and export {TOKEN}=... in the shell (never on a command line)")
    return found


def describe(options: ExportConfig, out: Path) -> str:
    """What a dry run says of the push; nothing is asked of a network."""
    kind = "private" if options.private else "public"
    said = "is set" if os.environ.get(TOKEN, "").strip() else "is not set"
    return f"push     {out} to {options.push} ({kind} if it is new) with huggingface_hub; {TOKEN} {said}"


def prepare(options: ExportConfig) -> None:
    """Make the repository, or find it.

    :raises ConfigError: no token, no network, no right to write there; a public repository where a private one is asked for.
    """
    repo = options.push
    check_name(repo)
    with _asking(repo, "nothing was exported yet: mend it, or leave export.push out and push later") as api:
        api.create_repo(repo, private=options.private, exist_ok=True)
        if options.private and not api.repo_info(repo).private:
            raise ConfigError("export.private", True, f"false: {repo} is there already, and public",
                              "set export.private=false to publish, or push to another name")


def push(folder: Path, options: ExportConfig) -> str:
    """Upload ``folder`` as one commit, over the weights of an earlier push; returns the commit's address.

    :raises ConfigError: as :func:`prepare`.
    """
    repo = options.push
    with _asking(repo, f"the export in {folder} is whole: give the same command again") as api:
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, delete_patterns=_REPLACED, commit_message="Checkpoint trained by vold_nemo"
        )
    return str(done.commit_url)


@contextlib.contextmanager
def _asking(repo: str, mend: str) -> Iterator:
    """The hub's API; what goes wrong with it becomes an error of the key, without the token."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    secret = token()
    try:
        yield HfApi(token=secret)
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        said = (str(error).strip().splitlines() or [""])[0].replace(secret, "***")[:200]
        raise ConfigError(KEY, repo, f"a repository that {TOKEN} may write to, and a network ({type(error).__name__}: {said})",
                          mend) from None  # the cause may hold a request with its headers
