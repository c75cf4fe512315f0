"""From plain values to one self-contained page.  Values are text, whatever they hold; only ``charts.py`` makes markup."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vold_nemo.config.printable import harmless

if TYPE_CHECKING:
    from vold_nemo.pages.blocks import Section
    from vold_nemo.pages.report.verdict import Sentence

def render(
    title: str, heading: str, lead: str, sections: Sequence[Section], *, over: str = "", headline: Sentence | None = None,
    sentences: Sequence[Sentence] = (), notes: Sequence[Any] = (),
) -> str:  # fmt: skip
    """``templates/page.html`` filled in: ``over`` stands small above the heading; ``headline`` and ``sentences`` are what the
    numbers say (``report/verdict.py``), ``notes`` the blocks below them."""
    return harmless(_template().render(locals()))


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: dict[str, Any] = dict(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return Environment(loader=PackageLoader("vold_nemo.pages"), **options).get_template("page.html")


def now() -> str:
    return f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC"
