r"""In which forms the keys of a set are written, and what that means for the verifier that was chosen (docs/verifiers.md).

A form says how many ways there are to write the same answer.  An integer has one, and exact match finds it; an equation has
many, of which exact match knows the key's own; a key of several lines has none that a model would box.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vold_nemo.rewards.choice import letter_of
from vold_nemo.rewards.numeric import number_of

# Forms that no plain answer can meet, whichever verifier reads it.
HOPELESS = ("several lines", "wrapped", "sentence", "stands for nothing")
ONE_SPELLING = ("integer", "word, symbol", "letter")
FITS_BETTER = 0.05  # a share of the keys above which another verifier is worth a word

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_GAP = re.compile(r"nan|none|null|n/?a|inf|-|\?|unknown|undefined|<na>", re.IGNORECASE)
_PROSE = re.compile(r"[A-Za-z]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{[^{}]*\}")
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("integer", re.compile(r"[+-]?\d+")),
    ("thousands", re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\}|\\[,!])\d{3})+(?:\.\d+)?")),
    ("fraction, decimal", re.compile(
        rf"{_NUMBER}(?:e[+-]?\d+)?|{_NUMBER}\s*/\s*{_NUMBER}|[+-]?\d*\s*\\[dt]?frac\s*"
        r"(?:\{\s*[+-]?\d+\s*\}\s*\{\s*\d+\s*\}|\d\s*\d)|" + rf"{_NUMBER}\s*(?:\\times|\\cdot)\s*10\^\{{?-?\d+\}}?",
        re.IGNORECASE)),
    ("letter", re.compile(r"[A-Z]")),
    ("choice", re.compile(r"\(?[A-Z][).:]|\([A-Z]\).*|\\text\{\(?[A-Z]\)?\}")),
    ("money", re.compile(rf"\\?\$\s*{_NUMBER}[\d,.]*")),
    ("percentage", re.compile(r".*\d.*\\?%")),
    ("ratio", re.compile(rf"{_NUMBER}\s*:\s*{_NUMBER}")),
    ("degrees", re.compile(r".*(?:\^\s*\{?\s*\\circ\s*\}?|°|\bdegrees?\b).*")),
    ("point, interval", re.compile(
        r"(?:\\left)?\s*[(\[].*(?:,|\\infty).*[)\]]|.*\\begin\{[a-z]*matrix\}.*|.*\\(?:cup|cap)\b.*")),
    ("relation", re.compile(r".*(?:\\[lg]e(?:q|qslant)?\b|\\neq?\b|\\in\b|[<>≤≥]).*")),
    ("equation", re.compile(r".*=.*")),
    ("list", re.compile(r"\\\{.*\\\}|.*,.*|.*(?:\band\b|\bor\b|\\pm).*")),
    ("unit", re.compile(rf"{_NUMBER}\s*(?:\\[,; ])?\s*(?:\\(?:text|mathrm|mbox)\s*\{{.*|[A-Za-z].*)")),
    ("word, symbol", re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}|\\?[A-Za-z]+(?:[ -][A-Za-z]+)*")),
)  # fmt: skip


def form_of(key: str) -> str:
    """The form of a key from which every certain wrapping was taken (``key_text.unwrapped``)."""
    key = key.strip()
    if not key or _GAP.fullmatch(key):
        return "stands for nothing"
    if "\n" in key:
        return "several lines"
    if "\\boxed" in key or "####" in key or key.startswith('["') or re.search(r"(?<!\\)\$[^$]*[^$\d.,\s][^$]*(?<!\\)\$", key):
        return "wrapped"
    if len(_PROSE.findall(_COMMAND.sub(" ", _TEXT.sub(" ", key)))) > 5 or len(key) > 1000:
        return "sentence"
    spaced = re.sub(r"\\[,;:! ]", " ", key) if "\\" in key and not _FORMS[1][1].fullmatch(key) else key
    for name, pattern in _FORMS:
        if pattern.fullmatch(spaced):
            return name
    bare = _COMMAND.sub("", _TEXT.sub("", key))
    return "expression with letters" if re.search(r"[A-Za-z]", bare) else "constant"


def meets(verifier: str, form: str, key: str) -> bool | None:
    """Whether ``verifier`` rewards an answer equal to the key: True however it is written, None only letter by letter.

    Weighted and own verifiers are taken on trust.
    """
    if verifier == "choice":
        return letter_of(key) is not None and form not in HOPELESS
    if verifier.startswith("numeric"):
        return number_of(key) is not None and form not in HOPELESS
    if verifier not in ("boxed", "math"):
        return True
    if form in HOPELESS:
        return False
    return True if form in ONE_SPELLING or (verifier == "math" and form != "choice") else None


@dataclass
class KeyReport:
    """The keys of a set, as one verifier reads them."""

    verifier: str
    keys: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    met: dict[str, Counter[bool | None]] = field(default_factory=dict)  # verifier -> how it meets the keys
    first: dict[str, str] = field(default_factory=dict)  # form -> id of the first row with it

    def add(self, name: str, key: str) -> None:
        form = form_of(key)
        self.keys += 1
        self.forms[form] += 1
        self.first.setdefault(form, name)
        for verifier in dict.fromkeys((self.verifier, "boxed", "math", "choice", "numeric")):
            self.met.setdefault(verifier, Counter())[meets(verifier, form, key)] += 1

    def describe(self) -> list[str]:
        """Forms and their shares; what the verifier could ever reward."""
        shares = ", ".join(f"{form} {count / self.keys:.1%}" for form, count in self.forms.most_common())
        own = self.met[self.verifier]
        said = f"{self.verifier} could ever reward {self.keys - own[False]:,} of {self.keys:,}"
        if own[None]:
            said += f", {own[None]:,} of them only as the key is written, letter by letter"
        return [f"keys: {shares}", said]

    def warnings(self) -> list[str]:
        """What should be known before a run begins."""
        found = []
        for form in HOPELESS:
            if self.forms[form]:
                found.append(
                    f"{self.forms[form]:,} keys: {form} (first: {self.first[form]}); no plain answer meets them. "
                    "Write the answer alone into the column, or name the column that holds it (fields.answer)"
                )
        better = self.better()
        if better is not None:
            gained = self.met[better][True] - self.met[self.verifier][True]
            found.append(
                f"reward.verifier={better} fits these keys better than {self.verifier}: {gained:,} of {self.keys:,} more "
                "are met however the answer is written (docs/verifiers.md)"
            )
        return found

    def better(self) -> str | None:
        """The verifier that meets clearly more keys than the chosen one, if there is one."""
        if self.verifier not in ("boxed", "math", "choice") and not self.verifier.startswith("numeric"):
            return None
        letters = self.forms["letter"] + self.forms["choice"]
        if self.verifier != "choice" and letters >= 0.9 * self.keys and self.forms["choice"] > FITS_BETTER * self.keys:
            return "choice"
        candidates = ("boxed", "math") if letters < 0.9 * self.keys else ("choice",)
        best = max(candidates, key=lambda name: self.met[name][True])
        gained = self.met[best][True] - self.met[self.verifier][True]
        return best if best != self.verifier and gained > FITS_BETTER * self.keys else None


def report_keys(keys: Iterable[tuple[str, str | None, str | None]], default: str) -> list[KeyReport]:
    """A report for each verifier of ``(id, key or None, verifier or None for default)``; rows without a key are left out."""
    found: dict[str, KeyReport] = {}
    for name, key, verifier in keys:
        if key is not None:
            chosen = verifier or default
            found.setdefault(chosen, KeyReport(chosen)).add(name, key)
    return sorted(found.values(), key=lambda report: -report.keys)
