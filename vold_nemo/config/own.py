"""Configuration files of one's own: ``--config-dir FOLDER``, then ``./conf``, stand before those that come with the package.

So ``./conf/experiment/mine.yaml`` needs no checkout: it is ``experiment=mine`` for every verb that is started here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.places import conf

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath


def own_folders(config_dir: str | None = None) -> list[Path]:
    """The folders that stand before the shipped one, the first to be asked first.

    :raises ConfigError: ``config_dir`` is no folder.
    """
    folders = []
    if config_dir is not None:
        folders.append(Path(config_dir).expanduser().resolve())
        if not folders[0].is_dir():
            raise ConfigError("--config-dir", config_dir, "an existing folder", "correct the path")
    here = Path("conf").resolve()
    if here.is_dir() and here not in (conf(), *folders) and _is_ours(here):
        folders.append(here)
    return folders


def _is_ours(folder: Path) -> bool:
    """A root that does not start from our schema belongs to another program, whose folder we merely stand beside."""
    root = folder / "config.yaml"
    return not root.is_file() or "- schema" in root.read_text(encoding="utf-8", errors="replace")


def shadowed(folder: Path) -> list[str]:
    """Files of ``folder`` that stand in for a shipped one of the same name and other contents.

    One that was merely copied changes nothing; one that was changed, or copied from another version, does: worth a word
    where nobody asked for the folder by name.  ``my_*.yaml`` ship to be copied and filled in: no word about those.
    """
    ours = {file.relative_to(conf()): file for file in conf().rglob("*.yaml") if not file.name.startswith("my_")}
    both = (name for name in sorted(ours) if (folder / name).is_file())
    return [str(name) for name in both if (folder / name).read_bytes() != ours[name].read_bytes()]


def search_first(folders: list[Path]) -> None:
    """From now on Hydra, however it is started, looks into ``folders`` before the shipped ``conf/``."""
    from hydra.core.plugins import Plugins

    _FOLDERS[:] = folders
    Plugins.instance().register(_plugin())


def searched() -> tuple[Path, ...]:
    """What :func:`search_first` was last given."""
    return tuple(_FOLDERS)


_FOLDERS: list[Path] = []  # what the plugin reads: Hydra makes a new instance of it for each composition


@functools.cache
def _plugin() -> type:
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in _FOLDERS:
                search_path.prepend("own", f"file://{folder}", anchor="main")

    return OwnFolders
