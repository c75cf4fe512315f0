r"""The words of a question, as they are compared with those of another: however they are set, whichever numbers stand there.

    "The sum of \dfrac{1}{2} and  seventeen-hundred"    the sum of # and # hundred ...

LaTeX that only sets type, fractions and signs are no words; letters and digits part (2x is two words); every number, in figures
or in words, is ``#``, and several in a row are one.  Characters of scripts without blanks are words of their own.
"""

from __future__ import annotations

import functools
import re
import unicodedata

NUMBER = "#"
_TOKEN = re.compile(
    r"\\[A-Za-z]+"
    r"|\d+(?:(?:,|\{,\}|\\[,!])\d{3}(?!\d))*(?:\.\d+)?"
    r"|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]+"
)
_PARTS = re.compile(r"\d+|[^\W\d_]+")
# Commands that set type, and signs that are no letters when they are written as such (≤, ·, √, ∠).
_NO_WORDS = """
    left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle limits
    nolimits text textbf textit textrm textsf emph mbox hbox mathrm mathbf mathit mathsf mathbb mathcal
    mathfrak operatorname boldsymbol bm boxed fbox frac dfrac tfrac cfrac over sqrt cdot times div pm mp le
    leq leqslant lt ge geq geqslant gt ne neq approx equiv sim simeq cong propto to rightarrow leftarrow
    Rightarrow Leftarrow longrightarrow mapsto implies iff Leftrightarrow in notin ni subset subseteq supset
    supseteq cup cap setminus emptyset varnothing infty circ degree angle measuredangle perp parallel cdots
    ldots dots vdots quad qquad hspace vspace hfill overline underline widehat hat bar vec overrightarrow
    overarc tilde begin end sum prod int partial nabla lfloor rfloor lceil rceil langle rangle lvert rvert
    vert mid colon star ast prime forall exists neg land lor wedge vee bullet hline newline item centering
"""
_SETTING = frozenset(_NO_WORDS.split())
_BELOW_TWENTY = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen
"""
_TENTHS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = dict(zip(_BELOW_TWENTY.split(), range(20), strict=True))
_TENS = dict(zip(_TENTHS.split(), range(20, 100, 10), strict=True))
_NAMES = {**_UNITS, **_TENS, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


@functools.lru_cache(maxsize=1 << 17)
def _plain(token: str) -> tuple[tuple[str, str], ...]:
    """(word, its number as it is written or "") of a token; several where NFKC takes one apart (x²)."""
    if token[0] == "\\":
        return () if token[1:] in _SETTING else ((token[1:].lower(), ""),)
    folded = unicodedata.normalize("NFKC", token).casefold()
    if folded[0].isdigit():
        return ((NUMBER, re.sub(r"[,{}\\!]", "", folded)),)
    if folded in _NAMES:
        return ((NUMBER, str(_NAMES[folded])),)
    if len(folded) == 1 and "α" <= folded <= "ω":
        folded = unicodedata.name(folded, folded).rpartition(" ")[2].lower()
    return tuple((NUMBER, part) if part[0].isdigit() else (part, "") for part in _PARTS.findall(folded))


def words(text: str) -> list[str]:
    """The words of ``text``, numbers as :data:`NUMBER`."""
    found: list[str] = []
    for token in _TOKEN.findall(text):
        for word, _ in _plain(token):
            if word != NUMBER or not found or found[-1] != NUMBER:
                found.append(word)
    return found


def placed(text: str) -> list[tuple[str, int, int]]:
    """(word, first character, the one behind its last) of each of :func:`words`."""
    found: list[tuple[str, int, int]] = []
    for token in _TOKEN.finditer(text):
        for word, _ in _plain(token[0]):
            if word == NUMBER and found and found[-1][0] == NUMBER:
                found[-1] = (NUMBER, found[-1][1], token.end())
            else:
                found.append((word, *token.span()))
    return found


def numbered(text: str) -> list[str]:
    """The words of ``text`` with their numbers, in figures: "twenty-five" is 25."""
    found: list[str] = []
    tens = -1  # place of "twenty" and its like in ``found``, if that was the last word
    for token in _TOKEN.findall(text):
        for word, number in _plain(token):
            if tens == len(found) - 1 >= 0 and number in _SINGLES and not token[0].isdigit():
                found[-1] = str(int(found[-1]) + int(number))
                continue
            if token.casefold() in _TENS:
                tens = len(found)
            found.append(number or word)
    return found


_SINGLES = frozenset(map(str, range(1, 10)))
