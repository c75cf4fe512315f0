"""Short answers in words, lists and coordinates; mathematics, which the verifier `math` judges; and yes or no."""

from __future__ import annotations

import ast
import re

from vold_nemo.evaluation.scorers.numbers import answered_numbers, close, numbers_in, score_number, value_of
from vold_nemo.evaluation.scorers.spans import announcements, closing, first_sentence, stated, visible
from vold_nemo.rewards.verdict import Item, Verdict

_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:the|a|an)\s+")
_NAMED = re.compile(r".*\b(?:is|are|was|were|be|equals)\b:?\s*(.+)")
_CLOCK = re.compile(r"\d{1,2}:\d{1,2}")
_SIGNS = re.compile(r"[\d\s+\-*/^=().,\\{}πa-zA-Z√]{1,40}")
_COMMAND, _WORD = re.compile(r"\\[a-z]+"), re.compile(r"[a-zA-Z]{3}")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_ASKED = re.compile(r"\byes\s?(?:or|/)\s?no\b", re.IGNORECASE)  # the question again, or no decision
_ENDS_YES_NO = re.compile(r"(?:[,;:]|\b(?:so|is|say))\s{1,3}[*\"'(]{0,3}(yes|no)[*\"').!]{0,4}\Z", re.IGNORECASE)
_TYPED = re.compile(  # "the area is 5 + 4√3 cm"
    r"(?:\b(?:is|are|be|equals)\b|[=≈])\s{0,3}(?=[^√π]{0,40}[√π])([\d\s+\-−*/^().√π]{1,40})(?:\s[a-z]{1,5}|°)?\Z"
)
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def answered_text(response: str) -> tuple[str | None, str]:
    """The answer as a short text, and where it stands."""
    stating = stated(response)
    if stating is not None:
        return stating.text, stating.place
    told = announcements(response)
    if told:
        sentence = first_sentence(told[-1][1])
        if sentence:
            return sentence, "announced"
    text = visible(response)
    if text and len(text) <= 60 and "\n" not in text:
        return text, "alone"
    return None, "no answer announced"


def simple(text: str) -> str:
    """Letters and numbers as they are compared: no case, blanks around signs, article, wrappers, quotes, full stop."""
    text = _WRAPPER.sub(r"\1", text.replace("$", "").replace("−", "-")).strip().strip("\"'`*_“”").casefold()
    text = _ARTICLE.sub("", text.rstrip(".!").strip())
    return re.sub(r"\s*([,:;=()\[\]/-])\s*", r"\1", " ".join(text.split()))


def numbers_of(text: str, count: int | None = None) -> list[float] | None:
    """``[1, 2.5]``, ``(0.886, -0.465)``, ``1, 2 and 3``: the numbers; None if there is anything else.

    ``[200,300]`` is one number or two: two, if ``count`` says so.
    """
    text = re.sub(r"\\(?:left|right|,|;|!| )|\$", "", text).strip().rstrip(".")
    inner = text
    for _ in range(3):
        if bracketed := re.fullmatch(r"\\?[(\[{](.*?)\\?[)\]}]", inner, re.DOTALL):
            inner = bracketed[1].strip()
    parts = [part.strip() for part in re.split(r",(?!\d{3}(?:\D|$))|;|\band\b|\bto\b|\n", inner) if part.strip()]
    if not any(c in text for c in ",;([") and " and " not in text and " to " not in text:
        return None
    values = [value_of(part) for part in parts]
    if count is not None and len(values) != count == inner.count(",") + 1 and ", " not in inner:
        return numbers_of(text.replace(",", ", "))
    return None if not values or None in values else values


def _clock(text: str) -> tuple[int, int] | None:
    found = _CLOCK.fullmatch(text)
    return tuple(int(part) for part in text.split(":")) if found else None


def same_text(said: str, truth: str, tolerance: float = 1e-3) -> bool:
    """Equal in words; in every number of a list or of coordinates, within ``tolerance``; or as times of day."""
    a, b = simple(said), simple(truth)
    if a == b:
        return True
    if _clock(b):
        return _clock(a) == _clock(b)
    numbers = numbers_of(truth)
    if numbers is not None:
        mine = numbers_of(said, len(numbers))
        return (
            mine is not None
            and len(mine) == len(numbers)
            and all(map(lambda x, y: close(x, y, None, tolerance), mine, numbers))
        )
    if "=" in b:
        sides, wanted = a.split("="), b.split("=")
        return (
            len(sides) == len(wanted) == 2 and sides[0] == wanted[0] and _equal_number(sides[1], wanted[1], tolerance)
        )
    return _equal_number(a, b, tolerance)


def _equal_number(a: str, b: str, tolerance: float) -> bool:
    x, y = value_of(a), value_of(b)
    return x is not None and y is not None and close(x, y, None, tolerance)


def _stands_in(said: str, truth: str) -> bool:
    """Whether a word stands, whole, in a short phrase ("it was May" for May); numbers and single letters must end it
    ("the first node is D")."""
    wanted, phrase = simple(truth), simple(said)
    if len(phrase.split()) > 20 or re.search(r"\b(?:not|or|neither)\b", phrase):
        return False
    if (named := _NAMED.match(phrase)) and same_text(named[1], truth):
        return True
    if len(wanted) < 3 or value_of(wanted) is not None:
        return False
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", phrase) is not None


def score_text(response: str, truth: str, alternatives: tuple[str, ...] = ()) -> Verdict:
    """1 if the answer is ``truth`` or one of ``alternatives``."""
    said, place = answered_text(response)
    if said is None:
        said, place = closing(response), "closing"
        if not said or len(said) > 200:
            return Verdict.of(False, None, "no answer announced")
    wanted = (truth, *alternatives)
    right = any(same_text(said, one) or _stands_in(said, one) for one in wanted)
    if not right and (found := _bracketed(said)) is not None:
        right = any(same_text(found, one) for one in wanted)
    if not right and place == "closing":
        return Verdict.of(False, None, "no answer announced")
    return Verdict.of(right, said, ("equal, " if right else "differs, ") + place)


def _bracketed(text: str) -> str | None:
    found = re.findall(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", text)
    return found[-1] if len(found) == 1 else None


def score_list(response: str, truth: str) -> Verdict:
    """1 if the numbers of the list are those of ``truth`` (``[2007, 2008]``), in its order."""
    try:
        wanted = [float(value) for value in ast.literal_eval(truth)]
    except (ValueError, SyntaxError, TypeError):
        return score_text(response, truth)
    said, place = answered_text(response)
    source = said if said is not None else closing(response)
    mine = numbers_of(_bracketed(source) or source, len(wanted))
    if mine is None:
        mine = [value for value, _ in numbers_in(source)]
    if not mine:
        return Verdict.of(False, None, "no list announced")
    right = len(mine) == len(wanted) and all(map(lambda x, y: close(x, y, None, None), mine, wanted))
    return Verdict.of(
        right, str(mine), ("equal, " if right else "differs, ") + (place if said is not None else "closing")
    )


def score_open(response: str, truths: tuple[str, ...]) -> Verdict:
    """MMMU's open questions: a number after rounding to two decimals, or a text; any of ``truths``.

    Where one of them is a number, a wrong answer without a number is unparsed.
    """
    numeric = [score_number(response, truth, 2, None) for truth in truths if value_of(truth) is not None]
    verdicts = numeric + [score_text(response, truth) for truth in truths if value_of(truth) is None]
    return next((v for v in verdicts if v.reward == 1), verdicts[0])


def read_math(response: str, truth: str) -> Verdict | Item:
    """What `math` is asked: the field or box, what is announced, or the one formula or number of the last sentence."""
    stating = stated(response)
    said = stating.text if stating is not None else None
    if said is None and (told := announcements(response)):
        said = _formula(first_sentence(told[-1][1]))
    if said is None:
        said = _formula(closing(response))
    if said is None and (found := answered_numbers(response)[0]):
        said = f"{found[0][0]:.12g}"
    if said is None or not said.strip(" .$"):
        return Verdict.of(False, None, "no answer announced")
    return Item(f"\\boxed{{{_in_latex(said.strip().strip('$').rstrip('.'))}}}", _in_latex(bare_math(truth)), "math")


def _in_latex(text: str) -> str:
    """The signs that models type in place of commands: ``4√3``, ``√(13)``, ``2π``."""
    text = re.sub(r"√\s?(?:(\d+)|\(([^()]{1,40})\))", lambda found: f"\\sqrt{{{found[1] or found[2]}}}", text)
    return text.replace("π", "\\pi ")


def _formula(sentence: str) -> str | None:
    """The last formula of a sentence, a sentence that is one, or its one number."""
    found = [next(part for part in match if part) for match in _MATHS.findall(sentence)]
    if found:
        return found[-1].strip()
    sentence = sentence.strip().rstrip(".").strip("*_ ")
    if value_of(sentence) is not None or (sentence and " " not in sentence):
        return sentence
    if _SIGNS.fullmatch(sentence) and re.search(r"\d|\\", sentence) and not _WORD.search(_COMMAND.sub("", sentence)):
        return sentence
    if typed := _TYPED.search(sentence):
        return typed[1].strip()
    numbers = numbers_in(sentence)
    return f"{numbers[0][0]:.12g}" if len(numbers) == 1 else None


def bare_math(truth: str) -> str:
    """A key without the dollars and boxes that some benchmarks leave around it."""
    truth = truth.strip()
    while found := re.fullmatch(r"\$+(.*?)\$+|\\boxed\{(.*)\}", truth, re.DOTALL):
        truth = (found[1] if found[1] is not None else found[2]).strip()
    return truth


def score_yes_no(response: str, truth: str) -> Verdict:
    """1 if the answer is ``truth``, yes or no: alone, first, announced or last; both or neither are unparsed.

    Of a last sentence with both, the word that ends it behind a comma, "so" or "is".
    """
    response = _ASKED.sub(" ", response)
    said, place = answered_text(response)
    text = said if said is not None else visible(response)
    opening = re.match(r"[\s*_\"'(]*(yes|no)\b", text, re.IGNORECASE)
    words = {word.casefold() for word in _YES_NO.findall(closing(response) if opening is None else text)}
    if opening is None and len(words) == 2 and (opening := _ENDS_YES_NO.search(closing(response))):
        place = "closing"  # "there is no error, so yes"
    word = opening[1].casefold() if opening else words.pop() if len(words) == 1 else None
    if word is None:
        return Verdict.of(False, None, "neither yes nor no" if not words else "both yes and no")
    right = word == truth.casefold()
    return Verdict.of(right, word, ("equal, " if right else "differs, ") + (place or "opens"))
