r"""A box or a key as tokens: what is said, without how it is set.

Blanks, sizes, fonts, ``\left``, dollar signs, doubled backslashes and a closing full stop say nothing; ``\dfrac`` is
``\frac``, ``²`` is ``^2`` and ``\text{cm}`` is the word cm.  Letters that stand together are one token: ``no`` is not
``n`` times ``o``.  Nothing is computed here, and every pass is linear in the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NUMBER, LETTER, RUN, WORD, COMMAND, MARK, STRANGE = "number", "letter", "run", "word", "command", "mark", "strange"


class Token(NamedTuple):
    """``kind`` is one of the above: a run is two or more letters set as mathematics, a word is letters of a ``\\text{}``."""

    kind: str
    text: str
    gap: bool = False  # a blank stands before it
    prose: bool = False  # set as text


_SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": "\\cdot ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "\\div ", "≤": "\\le ", "⩽": "\\le ",
    "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "√": "\\sqrt ", "°": "\\degree ", "′": "'", "’": "'", "″": "''", "…": "\\ldots ", "±": "\\pm ",
    "²": "^2", "³": "^3", "½": "\\frac{1}{2}", "π": "\\pi ", "→": "\\to ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "θ": "\\theta ", "λ": "\\lambda ", "μ": "\\mu ", "ω": "\\omega ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ",
})  # fmt: skip
_ALIAS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "lt": "lt", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "times": "cdot", "ast": "cdot", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots",
    "varnothing": "emptyset", "dbinom": "binom", "tbinom": "binom", "surd": "sqrt", "operatorname*": "operatorname",
    "widehat": "hat", "overrightarrow": "vec", "lg": "log", "colon": "colon", "bullet": "cdot", "infinity": "infty",
}  # fmt: skip
_SAME_AS = {"lt": "<", "gt": ">", "lvert": "|", "rvert": "|", "vert": "|", "colon": ":", "lbrace": "\\{", "rbrace": "\\}",
            "langle": "(", "rangle": ")", "lparen": "(", "rparen": ")", "lbrack": "[", "rbrack": "]", "degree": "°",
            "prime": "'", "percent": "%", "lor": "or", "vee": "or"}  # fmt: skip
_SILENT = frozenset((
    "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "displaystyle",
    "textstyle", "scriptstyle", "limits", "nolimits", "mathbf", "boldsymbol", "bm", "mathit", "mathnormal", "mathsf",
    "mathtt", "quad", "qquad", "enspace", "thinspace", "large", "Large", "LARGE", "huge", "Huge", "small", "normalsize",
    "bf", "it", "rm", "textcolor",
))  # fmt: skip
_ONE_ARGUMENT = frozenset(
    ["triangle", "angle", "square", "hat", "bar", "vec", "tilde", "overline", "dot", "mathbb", "mathcal", "mathfrak"]
)
_PLAIN_NAMES = {"pi": "pi", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan", "ln": "ln", "log": "log", "exp": "exp",
                "infinity": "infty", "inf": "infty", "alpha": "alpha", "beta": "beta", "theta": "theta",
                "arctan": "arctan", "arcsin": "arcsin", "arccos": "arccos"}  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mbox|hbox|mathrm|operatorname\*?)(?![A-Za-z])\s*(?:\{([^{}]*)\}|(?<=mathrm)\s*([A-Za-z]))"
)
_THIN = re.compile(r"(?<=\d)(?:\{,\}|\\[,!;]|,\\!)(?=\d{3}(?!\d))")
_REPEATING = re.compile(r"(\d{1,30})\.(\d{0,30})\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,30})\s*\}|(\d))")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z{}])")
_PRIME = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|\\prime(?![A-Za-z]))")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_OVER = re.compile(r"\{([^{}]{1,60})\\(over|choose)(?![A-Za-z])([^{}]{1,60})\}")
_SPACED_THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+")
_SPACING = re.compile(r"\\[,;:! ]|~|\\hspace\s*\{[^{}]*\}")
_NUMBER = r"\d+(?:\.\d+)?[eE][+-]?\d{1,4}(?![\d.A-Za-z^_{\\(])|\d+\.\d+|\d+\.(?!\.)|\d+|\.\d+"
_MATHS = re.compile(
    rf"(?P<gap>\s+)|(?P<number>{_NUMBER})|(?P<letters>[A-Za-z]+)|\\(?P<command>[A-Za-z]+)|(?P<escaped>\\[{{}}$%&#_|\\])"
    r"|(?P<dots>\.\.\.)|(?P<two><=|>=|->)|(?P<mark>[-+*/^_!|=<>:,;()\[\]{}%'°.$])|(?P<strange>.)", re.DOTALL
)  # fmt: skip
_PROSE = re.compile(
    rf"(?P<gap>\s+)|(?P<number>{_NUMBER})|(?P<word>[AaPp]\.\s?[Mm]\.?|[A-Za-z][A-Za-z'’-]*[A-Za-z]|[A-Za-z])|\\(?P<command>[A-Za-z]+)"
    r"|(?P<escaped>\\[{}$%&#_|\\])|(?P<dots>\.\.\.)|(?P<mark>[-+*/^_!|=<>:,;()\[\]{}%'°.$])|(?P<strange>.)", re.DOTALL
)  # fmt: skip
_MERIDIEM = re.compile(r"([ap])\.?\s?m\.?", re.IGNORECASE)


def tokens_of(text: str) -> tuple[Token, ...]:
    """The tokens of a box or a key, without what only sets it."""
    found = _without_wrapping(_scanned(_cleaned(text)))
    return tuple(_scripts_without_braces(found))


def _cleaned(text: str) -> str:
    text = text.strip().translate(_SIGNS)
    while len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2].strip()
    if "\\\\begin" in text:
        text = text.replace("\\\\", "\\")
    elif "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    text = _REPEATING.sub(_repeating, _THIN.sub("", text))
    text = _PRIME.sub(lambda found: "'" * max(1, (found[1] or "").count("prime")), text)
    text = _DEGREE.sub("°", text)
    if "\\over" in text or "\\choose" in text:
        text = _OVER.sub(
            lambda found: ("\\frac" if found[2] == "over" else "\\binom") + f"{{{found[1]}}}{{{found[3]}}}", text
        )
    return _SPACING.sub(" ", text)


def _repeating(found: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as the fraction that it is."""
    whole, part, over = found[1], found[2], found[3] or found[4]
    under = 10 ** len(part) * (10 ** len(over) - 1)
    return f"(\\frac{{{int(whole + part + over) - int(whole + part)}}}{{{under}}})"


def _scanned(text: str) -> list[Token]:
    found: list[Token] = []
    place = 0
    for words in _TEXT.finditer(text):
        _scan(text[place : words.start()], _MATHS, found)
        _scan(words[1] if words[1] is not None else words[2], _PROSE, found)
        place = words.end()
    _scan(text[place:], _MATHS, found)
    return found


def _scan(text: str, pattern: re.Pattern[str], found: list[Token]) -> None:
    gap = bool(found) and pattern is _PROSE
    for match in pattern.finditer(text):
        kind, said = match.lastgroup, match.group()
        if kind == "gap":
            gap = True
            continue
        if kind == "number":
            said = said[:-1] if said.endswith(".") else said
            found.append(Token(NUMBER, "0" + said if said.startswith(".") else said, gap))
        elif kind == "letters":
            _letters(said, gap, found)
        elif kind == "word":
            said = _MERIDIEM.fullmatch(said)[1].lower() + "m" if _MERIDIEM.fullmatch(said) else said
            found.append(Token(LETTER if len(said) == 1 else WORD, said, gap, True))
        elif kind == "command":
            _command(match["command"], gap, found)
        elif kind == "escaped":
            said = {"\\%": "%", "\\|": "|", "\\_": "_"}.get(said, said)
            found.append(Token(MARK if said in ("%", "|", "_", "\\{", "\\}", "\\$") else STRANGE, said, gap))
        elif kind == "dots":
            found.append(Token(COMMAND, "ldots", gap))
        elif kind == "two":
            found.append(Token(COMMAND, {"<=": "le", ">=": "ge", "->": "to"}[said], gap))
        elif kind == "mark":
            if said != "$":
                found.append(Token(MARK, said, gap))
        else:
            found.append(Token(STRANGE, said, gap))
        gap = False


def _letters(said: str, gap: bool, found: list[Token]) -> None:
    meridiem = said.lower() in ("am", "pm") and found and found[-1].kind == NUMBER
    if meridiem:
        found.append(Token(WORD, said.lower(), gap))
    elif said in _PLAIN_NAMES:
        found.append(Token(COMMAND, _PLAIN_NAMES[said], gap))
    else:
        found.append(Token(LETTER if len(said) == 1 else RUN, said, gap))


def _command(name: str, gap: bool, found: list[Token]) -> None:
    name = _ALIAS.get(name, name)
    if name in _SILENT:
        return
    if name in _SAME_AS:
        said = _SAME_AS[name]
        found.append(Token(WORD if said == "or" else MARK, said, gap))
    else:
        found.append(Token(COMMAND, name, gap))


def _without_wrapping(found: list[Token]) -> list[Token]:
    """Without a closing full stop, braces or a box around everything, or ``Answer:`` before it."""
    while found:
        if found[-1][:2] in ((MARK, "."), (MARK, ",")) or (found[-1].text == "\\\\" and len(found) > 1):
            found = found[:-1]
        elif found[0][:2] == (COMMAND, "boxed") and len(found) > 2 and closing(found, 1) == len(found) - 1:
            found = found[2:-1]
        elif found[0].text == "{" and closing(found, 0) == len(found) - 1 and len(found) > 2:
            found = found[1:-1]
        elif (
            found[0].kind in (WORD, RUN)
            and found[0].text.lower() == "answer"
            and len(found) > 2
            and found[1].text == ":"
        ):
            found = found[2:]
        else:
            break
    return found


def _scripts_without_braces(found: list[Token]) -> list[Token]:
    """``x_{1}`` as ``x_1``: braces around one token of a script say nothing."""
    kept: list[Token] = []
    place = 0
    while place < len(found):
        if (
            found[place].text == "{" and place + 2 < len(found) and found[place + 2].text == "}"
            and ((kept and kept[-1].text in ("_", "^")) or _plain_group(kept))
        ):  # fmt: skip
            kept.append(found[place + 1]._replace(gap=False))
            place += 3
        else:
            kept.append(found[place])
            place += 1
    return kept


def _plain_group(before: list[Token]) -> bool:
    """Whether a group that follows is no argument of a command."""
    return not before or (before[-1].kind == COMMAND and before[-1].text in _ONE_ARGUMENT)


OPENING, CLOSING = frozenset(("(", "[", "{", "\\{")), frozenset((")", "]", "}", "\\}"))


def closing(found: list[Token] | tuple[Token, ...], start: int) -> int:
    """Where the bracket at ``start`` is closed, whatever the kind (``(1,2]``); -1 if it is not."""
    depth = 0
    for place in range(start, len(found)):
        if found[place].kind == MARK:
            if found[place].text in OPENING:
                depth += 1
            elif found[place].text in CLOSING:
                depth -= 1
                if depth == 0:
                    return place
    return -1


def split(found: tuple[Token, ...], marks: frozenset[str]) -> tuple[list[tuple[Token, ...]], list[Token]]:
    """The parts between tokens of ``marks`` that stand in no bracket, and those tokens."""
    parts: list[tuple[Token, ...]] = []
    between: list[Token] = []
    depth = begin = 0
    for place, token in enumerate(found):
        if token.kind == MARK and token.text in OPENING:
            depth += 1
        elif token.kind == MARK and token.text in CLOSING:
            depth -= 1
        elif depth == 0 and token.kind != STRANGE and token.text in marks:
            parts.append(found[begin:place])
            between.append(token)
            begin = place + 1
    return [*parts, found[begin:]], between


def canonical(found: tuple[Token, ...] | list[Token]) -> str:
    """One text for all ways of setting the same tokens; words in small letters, names of points letter by letter."""
    said = []
    for token in found:
        if token.kind in (WORD, RUN):
            said.append(" ".join(token.text) if token.text.isupper() else f"<{token.text.lower()}>")
        elif token.kind == COMMAND:
            said.append("\\" + token.text)
        else:
            said.append(token.text)
    return " ".join(said)
