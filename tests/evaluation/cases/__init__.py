"""Answers in the forms that models write, each read by hand: a file for each family of questions, a line for each answer.

``answer``: the letters that a careful reader takes the response to mean, null where it answers nothing, or more than one
thing.  ``right``: what that reader makes of it beside the truth, null where nothing is answered.
"""

from pathlib import Path

from tests.tables import table

_HERE = Path(__file__).parent

LENGTHS = ("12 cm", "15 cm", "18 cm", "20 cm")
COLOURS = ("red", "dark red", "blue", "No correct answer")
CHOICE = table(_HERE / "choice.jsonl", "response", "answer")  # of LENGTHS
OPTION_TEXTS = table(_HERE / "option_texts.jsonl", "response", "answer")  # of COLOURS
LETTERS = table(_HERE / "letters.jsonl", "response", "answer")  # LogicVista: A to E, several may be right
NUMBERS = table(_HERE / "numbers.jsonl", "response", "truth", "precision", "tolerance", "right")  # MathVista and DynaMath
TEXTS = table(_HERE / "texts.jsonl", "response", "truth", "right")
LISTS = table(_HERE / "lists.jsonl", "response", "truth", "right")
MATH = table(_HERE / "math.jsonl", "response", "truth", "right")  # free answers of MathVision, MathVerse, Geometry3K
YES_NO = table(_HERE / "yes_no.jsonl", "response", "truth", "right")  # MME
# What each public benchmark's own rules read in their own way; ``place`` of the question among its rows in published.jsonl
QUIRKS = table(_HERE / "quirks.jsonl", "benchmark", "place", "response", "right")
