"""Who may name which verifier.  Rows are data, and data must not run code.

The configuration names code by its path, in ``reward.verifier`` or in ``reward.verifiers: {maths: package.module:function}``.
A row names a built-in verifier or a name of that list, alone or in a weighted sum; a path only where the configuration has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.rewards.own import PATH
from vold_nemo.rewards.registry import BUILT_IN, resolve

FOREIGN = "the data's verifier column"  # what an error is about whose row names code
_NAME = re.compile(r"[A-Za-z_]\w*")
_TERM = re.compile(r"(?<=\*)([A-Za-z_]\w*)(?=\+\d|\Z)")  # of a weighted sum: a listed name stands alone


class Names:
    """What each name stands for under ``config``.

    Raises:
        ConfigError: a name in ``reward.verifiers`` that is taken or no word, or a path that is none; ``reward.verifier``
            unknown.
    """

    def __init__(self, config: RewardConfig):
        self.listed: Mapping[str, str] = dict(config.verifiers)
        for name, path in self.listed.items():
            if not _NAME.fullmatch(name) or name in BUILT_IN:
                allowed = f"a word of letters, digits and _ that is none of {', '.join(BUILT_IN)}"
                raise ConfigError("reward.verifiers", name, allowed, "choose another name")
            if not PATH.fullmatch(path):
                raise ConfigError(f"reward.verifiers.{name}", path, "package.module:function", "correct the path")
        self.default = self._written_out(config.verifier)
        self._code = {*self.listed.values(), *_paths(self.default)}

    def full(self, name: str | None) -> str:
        """The verifier that a row calls ``name`` (None: the configured one), with paths for listed names.

        Raises:
            ConfigError: there is none of that name, or it is code that the configuration does not name.
        """
        if name is None:
            return self.default
        written = self._written_out(name)
        if foreign := _paths(written) - self._code:
            raise ConfigError(
                FOREIGN, name, "a built-in verifier, or a name that reward.verifiers lists",
                f"list it, if you trust it: reward.verifiers.NAME={min(foreign)}, and write NAME into the data",
            )  # fmt: skip
        return written

    def is_own(self, name: str | None) -> bool:
        """Whether (a term of) it is the user's code: such a verifier reads keys as its set has them."""
        try:
            return bool(_paths(self.full(name)))
        except ConfigError:
            return False

    def _written_out(self, name: str) -> str:
        if found := re.fullmatch(r"judge\((.+)\)", name):
            return f"judge({self._written_out(found[1])})"
        if "*" not in name:
            return self.listed.get(name, name)
        return _TERM.sub(lambda found: self.listed.get(found[1], found[1]), name)


def _paths(name: str) -> set[str]:
    return {one for one in resolve(name).computing if PATH.fullmatch(one)}
