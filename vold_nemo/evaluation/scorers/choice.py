"""Multiple choice: which letters a response answers.

A letter counts where it is announced, stands alone, or opens the last line; a letter in passing ("A triangle", "point B")
does not.  An answer that gives an option's text in place of its letter is that option, if only one option has the text.
What cannot be read is unparsed, which is wrong: no letter is ever guessed.
"""

from __future__ import annotations

import re

from vold_nemo.evaluation.scorers.numbers import value_of
from vold_nemo.evaluation.scorers.spans import announcements, closing, first_sentence, stated, visible
from vold_nemo.rewards.verdict import Verdict

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|boldsymbol|boxed|bf|rm)\s*\{([^{}]*)\}")
_WORDS = r"(?:(?:the\s+)?(?:option|choice|letter|answer|figure|picture|image|diagram|graph|box|shape)s?\s*:?\s*)?"
_OPEN = (
    r"[\s*_$\"'`“‘:：(（\[{<\\]{0,12}"  # bounded, like all repetitions here: an answer of 50,000 brackets costs no more
)
_LETTER = r"([A-Za-z])(?![A-Za-z0-9_^′(=])(?!['’]\w)(?!\s*=)(?!-[a-z])"
_HEAD = re.compile(_OPEN + _WORDS + _OPEN + _LETTER, re.IGNORECASE)
_MORE = re.compile(
    r"[\s)）\]}*_\"'`$.]*(?:,|、|&|;|/|\band\b|\bor\b|\+)\s*(?:\b(?:and|or|both)\b\s*)?"
    + _WORDS
    + r"[(\[*\s$\"']*([A-Z])(?![A-Za-z0-9_^'])"
)
_END = re.compile(
    r"[\s)）\]}*_\"'`$”’\\]*(?:[(.,:;!?\n。，)]|\Z|[-–—](?=\s)|\s(?:because|since|as|with|which|for|and|or)\b)"
)
_RIGHT = re.compile(
    r"(?:\b(?:option|choice|answer|figure)\s+)?[(*\[\"']{0,4}\b([A-Z])\b[)*\]\"'.]{0,4}\s+(?:is|would be|must be|should be)\s+"
    r"(?:therefore\s+|thus\s+|indeed\s+|clearly\s+)?(?:the\s+)?(?:only\s+)?(?:\w+\s+)?(?:correct|right|best|valid)\b"
)
_ALL_RIGHT = re.compile(  # "options B and D are correct"
    r"[(*]{0,3}\b([A-Z]\b[)*]{0,3}(?:\s?(?:,\s?and|,|and|&)\s?[(*]{0,3}[A-Z]\b[)*]{0,3}){1,9})\s+are\s+(?:both\s+|all\s+)?"
    r"(?:the\s+)?(?:only\s+)?(?:correct|valid|right(?!\s*-?(?:angle|triangle|hand)))\b"
)
_PICKED = re.compile(  # the letter is a capital whatever the case of the rest: "we choose a point" picks nothing
    r"\b(?:choose|chose|select|pick|go\s+with|correspond(?:s|ing)?\s+to|match(?:es|ing)?|points?\s+to)\s+"
    r"(?:the\s+)?(?:option|choice|answer|letter)?\s*[(*\[\"']{0,4}((?-i:[A-Z]))(?![A-Za-z0-9_^'(])", re.IGNORECASE
)  # fmt: skip
_NAMED = re.compile(r"[(\[]([A-Z])[)\]]|\*\*([A-Z])\*\*|\b(?:is|be)\s(?:the\s)?(?:option|choice)\s([A-Z])(?![A-Za-z0-9_^'(])")
_OPENS_LINE = re.compile(r"[\s*_#>]*[(（\[]?([A-Z])(?:[)）\]]|\*{0,2}[.:：)]|\*\*)(?=\s|\Z|\*)")
_TOGETHER = re.compile(r"[A-Z]{2,8}")
_ITEM = r"[(*\"'`]{0,3}[A-Za-z][)*\"'`.]{0,3}"
_ITEMS = re.compile(rf"[\[{{(]?\s*{_ITEM}(?:[\s,&;/]+(?:and\s+)?{_ITEM})+\s*[\]}})]?")  # B, D | b and d | ['B', 'D']
_BOXES = re.compile(  # "\boxed{B} and \boxed{D}" up to the D
    r"(\\boxed\s{0,2}\{[^{}]{1,30})\}\s{0,3}\$?\s{0,3}(?:,\s{0,3}and|,|and|&)\s{0,3}\$?\s{0,3}\\boxed\s{0,2}\{"
)
UNDECIDED = "or"  # among the letters of an answer that leaves it open: "B or D"


def letters_in(text: str, allowed: str) -> tuple[str, ...]:
    """The letters that ``text`` begins with: B, (B), **B.**, B) twelve, "A and C", "B, D"; () if it begins otherwise.

    The article is told from the letter by what follows: "A triangle" is no answer, "A", "A.", "A, because" are.
    """
    text = _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", text))
    found = _HEAD.match(text)
    if found is None:
        return ()
    letter, rest = found[1], text[found.end() :]
    more = _MORE.match(rest)
    wrapped = bool(re.search(r"[(（\[{*$]\s*\Z", text[: found.start(1)]))
    ends = bool(_END.match(rest)) or more is not None
    if not (ends or wrapped or (letter.isupper() and letter not in "AI")):
        return ()
    if letter.islower() and not (ends or wrapped):
        return ()
    letters = [letter.upper()]
    while more is not None:
        letters += [UNDECIDED] * bool(re.search(r"\bor\b", more[0])) + [more[1]]
        rest = rest[more.end() :]
        more = _MORE.match(rest)
    return tuple(dict.fromkeys(letters))


def plain(text: str) -> str:
    """An option's text as it is compared: no dollars, blanks, case, outer punctuation, article, or LaTeX spacing."""
    text = _WRAPPER.sub(r"\1", text.replace("\\left", "").replace("\\right", "").replace("\\dfrac", "\\frac"))
    text = re.sub(r"^\W*(?:the|an?)\s+(?=\w{2})", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\\[,;:! ()\[\]]|[$\s*`\"'“”]|\\(?=[%$])", "", text).casefold()
    return re.sub(r"\^\{?\\circ\}?|degrees?", "°", text).strip(".,;:!?")


def option_of(text: str, options: tuple[str, ...], letters: str) -> str | None:
    """The letter of the one option that ``text`` is, in letters or as a number; None if none or several are."""
    wanted = plain(text)
    if not wanted or not options:
        return None
    same = [letter for letter, option in zip(letters, options, strict=False) if plain(option) == wanted]
    if not same and (value := value_of(text)) is not None:
        values = [(letter, value_of(option)) for letter, option in zip(letters, options, strict=False)]
        same = [letter for letter, v in values if v is not None and abs(v - value) <= 1e-9 * max(1.0, abs(v))]
    return same[0] if len(same) == 1 else None


def _option_inside(sentence: str, options: tuple[str, ...], letters: str) -> str | None:
    """The letter of the one option whose text stands, as words of its own, in ``sentence``.

    An option inside a longer one that is there as well ("50" in "150", "red" in "dark red") is not counted.
    """
    said = " ".join(sentence.casefold().replace("$", "").split())
    here = []
    for letter, option in zip(letters, options, strict=False):
        words = " ".join(option.casefold().replace("$", "").split()).strip(".")
        if len(words) > 1 and re.search(rf"(?<![\w.]){re.escape(words)}(?![\w]|\.\d)", said):
            here.append((letter, words))
    longest = [letter for letter, words in here if not any(words != other and words in other for _, other in here)]
    return longest[0] if len(longest) == 1 else None


def answered(response: str, options: tuple[str, ...], letters: str) -> tuple[tuple[str, ...], str]:
    """(letters answered, where they were found); () with the reason why there are none."""
    stating = stated(response)
    if stating is not None:
        text = stating.text
        exact = option_of(text, options, letters)
        direct = letters_in(text, letters)
        if direct and (exact is None or len(plain(text)) == 1):
            return direct, stating.place
        if exact is not None:
            return (exact,), stating.place
        if _TOGETHER.fullmatch(text.strip()) and set(text.strip()) <= set(letters):
            return tuple(dict.fromkeys(text.strip())), stating.place
        inner, _ = _read(text, options, letters)
        if inner:
            return inner, stating.place
        after = visible(response).rpartition("\\boxed")[2] if stating.place == "box" else ""
        if said := _announced(after, options, letters):  # the box holds a value, and the letter comes behind it
            return said, "announced"
        return (), f"the {stating.place} holds no option"
    return _read(response, options, letters)


def _read(response: str, options: tuple[str, ...], letters: str) -> tuple[tuple[str, ...], str]:
    text = visible(response)
    if not text:
        return (), "nothing was answered"
    alone = text.strip().strip("*_ ").rstrip(".")
    if len(alone) <= 200 and "\n" not in alone:
        if (letter := option_of(alone, options, letters)) is not None and not letters_in(alone, letters):
            return (letter,), "alone"
        if (
            _TOGETHER.fullmatch(alone)
            and len(alone) > 1
            and set(alone) <= set(letters)
            and len(set(alone)) == len(alone)
        ):
            return tuple(alone), "alone"
        if re.fullmatch(r"[\s(\[*]*[A-Za-z][\s)\]*.]*", alone) or _OPENS_LINE.match(alone):
            return letters_in(alone, letters), "alone"
        if _ITEMS.fullmatch(alone):
            several = tuple(dict.fromkeys(found.upper() for found in re.findall(r"\b[A-Za-z]\b", alone)))
            if set(several) <= set(letters):
                return several, "alone"
    if said := _announced(response, options, letters):
        return said, "announced"
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (lines[-1], lines[0]):  # an option written out at the end, or at the head of an explanation
        if (opened := _OPENS_LINE.match(line)) and sum(bool(_OPENS_LINE.match(other)) for other in lines) == 1:
            return (opened[1],), "opens a line"
        if re.fullmatch(r"[\s(\[*]*([A-Z])[\s)\]*.]*", line):
            return letters_in(line, letters), "a line of its own"
    if sum(bool(_OPENS_LINE.match(line)) for line in lines) > 1:  # the options, copied
        return (), "no option announced"
    last = closing(response)
    named = {m for m in _NAMED.findall(last) for m in m if m}
    if len(named) == 1:
        return tuple(named), "closing"
    if (inside := _option_inside(last, options, letters)) is not None:
        return (inside,), "closing"
    return (), "no option announced"


def _announced(response: str, options: tuple[str, ...], letters: str) -> tuple[str, ...]:
    """The letters of the last announcement; () without one."""
    events: list[tuple[int, tuple[str, ...]]] = []
    for place, after in announcements(response):
        found = letters_in(after, letters)
        if not found:
            sentence = first_sentence(after)
            inside = option_of(sentence, options, letters) or _option_inside(sentence, options, letters)
            found = (inside,) if inside is not None else ()
        if found:
            events.append((place, found))
    offset = visible(response)[-20_000:]
    for pattern in (_RIGHT, _PICKED):
        for match in pattern.finditer(offset):
            if not re.search(r"\b(?:not|n't|incorrect)\b", offset[max(0, match.start() - 12) : match.end()]):
                events.append((match.start(), (match[1].upper(),)))
    for match in _ALL_RIGHT.finditer(offset):
        events.append((match.start(), tuple(dict.fromkeys(re.findall(r"\b[A-Z]\b", match[1])))))
    return max(events, key=lambda event: event[0])[1] if events else ()


def score_choice(response: str, truth: str, options: tuple[str, ...], letters: str) -> Verdict:
    """1 if the one letter that is answered is the true one."""
    found, place = answered(response, options, letters)
    if not found:
        return Verdict.of(False, None, place)
    if len(found) > 1:
        return Verdict.of(False, None, "several options")
    if letters and found[0] not in letters:
        return Verdict.of(False, found[0], "not one of the options")
    right = found[0] == truth
    return Verdict.of(right, found[0], ("equal, " if right else "differs, ") + place)


def score_letters(response: str, truth: str, options: tuple[str, ...], letters: str) -> Verdict:
    """1 if the set of letters that is answered is the true one (``truth`` is "BD"), in any order.

    Boxes that a comma or "and" joins are one answer; "B or D" is none.
    """
    while (joined := _BOXES.sub(r"\1, ", response)) != response:  # each round joins at least one box to another
        response = joined
    found, place = answered(response, options, letters)
    if not found:
        return Verdict.of(False, None, place)
    if UNDECIDED in found:
        return Verdict.of(False, None, "one option or another")
    right = set(found) == set(truth)
    return Verdict.of(right, "".join(sorted(found)), ("equal, " if right else "differs, ") + place)
