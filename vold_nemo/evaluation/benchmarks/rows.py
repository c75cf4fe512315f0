"""A row of a benchmark's published file becomes a :class:`Question`; one small function each.

Prompts are the published ones, in the form that asks for reasoning where a benchmark publishes several.  Options are what the
row says; a truth that is an option's text becomes its letter.  A row that cannot be a question raises ``RowError``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from vold_nemo.data.messages import RowError
from vold_nemo.evaluation.benchmarks.question import LETTERS, Question, lettered, with_images

MMMU_PRO_STANDARD = (
    "Answer the preceding multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of options. Think step by step before answering."
)
MMMU_PRO_VISION = (
    "Write out the multiple-choice question in the image and then solve it. The last line of your response should be of the "
    "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options. Think step by step before answering."
)
MATH_VISION = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice question, '
    'only one letter is allowed in the "\\boxed{}".'
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
WE_MATH = (
    "Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process and provide "
    "the final answer(option).\nQuestion: {question}\nOption: {option}\n"
    "Regarding the format, please answer following the template below, and be sure to include two "
    "<> symbols:\n<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
DYNAMATH = (
    "## Answer Instruction Please provide an answer to the question outlined above. Your response should adhere to the "
    "following JSON format, which includes two keys: 'solution' and 'short answer'. The 'solution' key can contain detailed "
    "steps needed to solve the question, and the 'short answer' key should provide a concise response. {how}\n\n"
    "Example of expected JSON response format:\n\n"
    '{{\n    "solution": "[Detailed step-by-step explanation]",\n    "short answer": "[Concise Answer]"\n}}'
)
DYNAMATH_HOW = {
    "multiple choice": "Provide the corresponing choice option in the 'short answer' key, such as 'A', 'B', 'C', or 'D'.",
    "float": "Format the answer as a three-digit floating-point number and provide it in the 'short answer' key.",
}
DYNAMATH_ELSE = "Float numbers in the answer should be formatted as three-digit floating-point numbers."
MMSTAR_PERCEPTION = ("coarse perception", "fine-grained perception")
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def need(row: dict, *names: str) -> Any:
    """The first of the columns that is there and not empty."""
    for name in names:
        if row.get(name) is not None and row.get(name) != "":
            return row[name]
    raise RowError(f"{names[0]}: missing")


def listed(value: Any) -> tuple[str, ...]:
    """MMMU keeps its options as a Python list in a string."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise RowError("options: not a list") from None
    return tuple(str(item) for item in value or ())


def picture(row: dict, folder: Path | None, *columns: str) -> Any:
    """Bytes or path of the image in the first column that holds one; a relative path starts beside the file."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value:
            path = Path(value)
            places = [path] if path.is_absolute() or folder is None else [folder / path, folder / "images" / path]
            found = next((place for place in places if place.is_file()), None)
            if found is not None:
                return str(found)
    raise RowError(f"{columns[0]}: no image")


def ask(row_id: Any, text: str, images: list[Any], truth: Any, **facts: Any) -> Question:
    content, ordered = with_images(text.strip(), images)
    truth = "" if truth is None else str(truth).strip()
    if not truth:
        raise RowError("answer: empty")
    options = tuple(facts.pop("options", ()))
    question = Question(
        str(row_id), [{"role": "user", "content": content}], truth, images=ordered, options=options, **facts
    )
    if question.scorer == "choice" and question.allowed() and truth not in question.allowed():
        raise RowError(f"answer: {truth[:20]!r} is not one of the options")
    return question


def _numbered_images(row: dict, folder: Path | None) -> list[Any]:
    return [picture(row, folder, f"image_{i}") for i in range(1, 8) if row.get(f"image_{i}") is not None]


def mmmu_pro_standard(row: dict, folder: Path | None) -> Question:
    options = listed(need(row, "options"))
    text = f"{need(row, 'question')}\n{lettered(options)}\n\n{MMMU_PRO_STANDARD}"
    return ask(need(row, "id"), text, _numbered_images(row, folder), row.get("answer"), options=options,
               domain=row.get("subject"), kind="standard")  # fmt: skip


def mmmu_pro_vision(row: dict, folder: Path | None) -> Question:
    return ask(need(row, "id"), MMMU_PRO_VISION, [picture(row, folder, "image")], row.get("answer"),
               options=listed(need(row, "options")), domain=row.get("subject"), kind="vision")  # fmt: skip


def mmmu(row: dict, folder: Path | None) -> Question:
    name = str(need(row, "id"))
    subject = re.sub(r"^[a-z]+_|_\d+$", "", name)
    kind = need(row, "question_type")
    options = listed(row.get("options")) if kind == "multiple-choice" else ()
    text = need(row, "question")
    if options:
        text = f"{text}\n{lettered(options)}\n\nAnswer with the option's letter from the given choices directly."
    else:
        text = f"{text}\n\nAnswer the question using a single word or phrase."
    return ask(name, text, _numbered_images(row, folder), row.get("answer"), options=options, domain=subject, kind=kind,
               scorer="choice" if options else "open")  # fmt: skip


def math_vision(row: dict, folder: Path | None) -> Question:
    options = tuple(str(option) for option in row.get("options") or ())
    # Two keys are damaged in the published file: a form feed for the \f of \frac, {degrees} for a degree sign.
    truth = str(need(row, "answer")).replace("\x0crac", "\\frac").replace("{degrees}", "^\\circ").strip()
    letter = bool(options) or re.fullmatch("[A-E]", truth) is not None
    text = f"{MATH_VISION}\n{need(row, 'question')}\n{lettered(options, '({letter}) {text}')}"
    return ask(need(row, "id"), text, [picture(row, folder, "decoded_image", "image")], truth, options=options,
               letters="" if options else "ABCDE" if letter else "", scorer="choice" if letter else "math",
               domain=row.get("subject"), kind="choice" if letter else "free-form")  # fmt: skip


def math_vista(row: dict, folder: Path | None) -> Question:
    choices = tuple(str(choice) for choice in row.get("choices") or ())
    kind, form, metadata = need(row, "question_type"), need(row, "answer_type"), row.get("metadata") or {}
    truth = str(need(row, "answer"))
    if kind == "multi_choice":
        if truth not in choices:
            raise RowError("answer: not one of the choices")
        truth, scorer = LETTERS[choices.index(truth)], "choice"
    else:
        scorer = {"integer": "number", "float": "number", "list": "list"}.get(form, "text")
    precision = int(row.get("precision") or 0) if form == "float" else 0 if form == "integer" else None
    return ask(need(row, "pid"), str(need(row, "query", "question")), [picture(row, folder, "decoded_image", "image")], truth,
               options=choices, scorer=scorer, precision=precision, domain=metadata.get("task"),
               kind=f"{kind}, {form}")  # fmt: skip


def logic_vista(row: dict, folder: Path | None) -> Question:
    truth = [part for part in re.split(r"[\s,]+", str(need(row, "answer")).upper()) if part]
    skills = row.get("skill") or ()
    skill = skills if isinstance(skills, str) else ", ".join(skills)
    image = picture(row, folder, "image", "imagename")
    name = need(row, "id", "index", "imagename")
    if not all(re.fullmatch("[A-Z]", part) for part in truth):  # one key is a number
        return ask(
            name, need(row, "question"), [image], " ".join(truth), scorer="open", domain=skill or None, kind="number"
        )
    return ask(name, need(row, "question"), [image], "".join(sorted(truth)), scorer="letters", letters=LETTERS[:10],
               domain=skill or None, kind="one letter" if len(truth) == 1 else "several letters")  # fmt: skip


def math_verse(row: dict, folder: Path | None) -> Question:
    metadata, kind = row.get("metadata") or {}, need(row, "question_type")
    version = need(row, "problem_version")
    images = [] if version == "Text_Only" or version == "Text Only" else [picture(row, folder, "image")]
    truth = str(need(row, "answer")).strip()
    choice = kind == "multi-choice"
    options = _inline_options(str(row.get("question_for_eval") or row.get("question") or "")) if choice else ()
    return ask(need(row, "sample_index"), need(row, "query_cot", "question"), images, truth, options=options,
               letters="" if options else "ABCDEFGH", scorer="choice" if choice else "math", kind=str(version),
               domain=metadata.get("subject"))  # fmt: skip


def _inline_options(text: str) -> tuple[str, ...]:
    """``Choices:\\nA:55°\\nB:65°`` or ``Options: A: x, B: y, C: z, D: w``; () unless they run from A without a gap."""
    after = re.split(r"(?:choices|options)\s*:", text, flags=re.IGNORECASE)[-1]
    marks = list(re.finditer(r"(?:^|[\s,;])\(?([A-H])(?:[:.)]|\s*[:：])\s*", after))
    letters = "".join(mark[1] for mark in marks)
    if not letters or letters != LETTERS[: len(letters)]:
        return ()
    ends = [mark.start() for mark in marks[1:]] + [len(after)]
    return tuple(after[mark.end() : end].strip().rstrip(",;").strip() for mark, end in zip(marks, ends, strict=True))


def mmstar(row: dict, folder: Path | None) -> Question:
    category = need(row, "category")
    return ask(need(row, "index"), need(row, "question"), [picture(row, folder, "image")], str(need(row, "answer")).strip(),
               options=_inline_options(row["question"]), letters="ABCD", domain=category, kind=row.get("l2_category"),
               skill="perception" if category in MMSTAR_PERCEPTION else "reasoning")  # fmt: skip


def dynamath(row: dict, folder: Path | None, variant: int) -> Question:
    kind = str(need(row, "answer_type")).strip()
    how = DYNAMATH_HOW.get(kind, DYNAMATH_ELSE)
    scorer = {"multiple choice": "choice", "float": "number", "int": "number"}.get(kind, "text")
    seed = str(need(row, "id", "qid"))
    level = row.get("knowledge_level") or row.get("level")
    return ask(f"{seed}/{variant}", f"## Question\n{need(row, 'question')}\n{DYNAMATH.format(how=how)}",
               [picture(row, folder, "decoded_image", "image")], need(row, "ground_truth", "answer"), scorer=scorer,
               letters="ABCDE" if scorer == "choice" else "", tolerance=1e-3 if scorer == "number" else None,
               domain=" ".join(str(row.get("subject") or "").split()) or None, kind=f"{kind}, {level}" if level else kind,
               group=seed, member=str(variant))  # fmt: skip


def we_math(row: dict, folder: Path | None) -> Question:
    options = [part.strip() for part in re.split(r"(?:^|;|,)\s*(?=[A-H]\.)", str(need(row, "option"))) if part.strip()]
    texts = tuple(re.sub(r"^[A-H]\.\s*", "", option) for option in options)
    key = str(need(row, "key"))
    text = WE_MATH.format(question=need(row, "question"), option=row["option"])
    return ask(f"{need(row, 'ID')}/{key}", text, [picture(row, folder, "image_path", "image")], need(row, "answer"),
               options=texts, letters="ABCDEFGH", domain=row.get("knowledge concept"), kind=key.split("_")[0],
               group=str(row["ID"]), member=key.split("_")[-1])  # fmt: skip


def geometry3k(row: dict, folder: Path | None) -> Question:
    images = row.get("images") or []
    return ask(row.get("id") or row["_number"], f"{need(row, 'problem')}\n{BOXED}",
               [picture({"image": image}, folder, "image") for image in images], need(row, "answer"), scorer="math",
               kind="free-form")  # fmt: skip


def mme(row: dict, folder: Path | None) -> Question:
    category = str(need(row, "category"))
    name = str(need(row, "question_id", "image_name"))
    text = str(need(row, "question"))
    return ask(f"{category}/{name}/{row['_number']}", text, [picture(row, folder, "image")], need(row, "answer"),
               scorer="yes_no", domain=category, kind="yes or no", group=f"{category}/{name}",
               skill="reasoning" if category.casefold() in MME_COGNITION else "perception")  # fmt: skip
