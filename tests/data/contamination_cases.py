r"""Evaluation questions and prompts, ours, with what must be said of each pair (tests/data/test_overlap.py).

``python -m tests.data.contamination_cases`` prints what each rule finds: the table of docs/data.md.
"""

FARM = ("A farmer has seventeen sheep and buys three times as many goats as sheep. He then sells half of the goats to a "
        "neighbour and keeps the rest. How many animals does the farmer have now?")  # fmt: skip
LADDER = (r"A ladder of length 13 leans on a wall at a height of 12. The sine of the angle at the ground can be written as "
          r"$\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$.")  # fmt: skip
INVERSE = (r"Let $f(x) = \dfrac{2x+1}{x-3}$ for all real $x \neq 3$. The inverse function $f^{-1}$ is undefined at exactly one "
           r"real value. What is the sum of that value and $f(4)$?")  # fmt: skip
COUNT = r"How many positive integers less than $1{,}000$ are divisible by $3$ but not by $5$ or $7$, and end in an even digit?"
FOOT = (r"Triangle $ABC$ has a right angle at $C$. Point $D$ lies on $\overline{AB}$ so that $CD$ is perpendicular to $AB$. If "
        r"$AD = 9$ and $DB = 16$, what is the area of triangle $ABC$?")  # fmt: skip
POND = ("A circular pond with a radius of 7 metres is surrounded by a gravel path that is 2 metres wide. What is the area of "
        "the path? Choose one of the options and answer with its letter alone.\n"
        r"(A) $32\pi$ (B) $28\pi$ (C) $45\pi$ (D) $49\pi$")  # fmt: skip
HANDS = (r"In a group of 8 people two are chosen at random. The probability that both are left-handed is $\frac{m}{n}$, where "
         r"$m$ and $n$ are relatively prime positive integers. Find $m+n$.")  # fmt: skip
GOATS = "一个农夫有十七只羊，他又买了三倍于羊的山羊，然后把一半山羊卖给邻居。农夫现在有多少只动物？"
EVALUATION = {"farm": FARM, "ladder": LADDER, "inverse": INVERSE, "count": COUNT, "foot": FOOT, "pond": POND, "hands": HANDS,
              "goats": GOATS}  # fmt: skip

# (prompt, evaluation question, kind: exact, n-gram, other numbers)
CONTAMINATED = [
    (FARM.replace(". ", ".\n\n   ").upper(), "farm", "exact"),
    (LADDER.replace("\\frac", "\\dfrac").replace("$m+n$", "$m + n$"), "ladder", "exact"),
    (f"Problem 7 (regional round, 2019). {FARM}", "farm", "n-gram"),
    (f"{FARM}\nPlease reason step by step, and put your final answer within \\boxed{{}}.", "farm", "n-gram"),
    (FARM.replace("seventeen", "17").replace("three", "3"), "farm", "n-gram"),
    (FARM.replace("seventeen", "23").replace("three", "four"), "farm", "other numbers"),
    (FARM.replace("neighbour", "friend"), "farm", "n-gram"),
    (FARM.replace("A farmer has", "Farmer Jo owns").replace("How many animals", "What number of animals"), "farm", "n-gram"),
    (FARM[: FARM.index("How many")] + "What is left?", "farm", "n-gram"),
    (f"Solve: {LADDER}", "ladder", "n-gram"),
    (LADDER.replace("13", "25").replace("12", "24"), "ladder", "other numbers"),
    (r"Let \(f(x)=\left(\frac{2 x+1}{x-3}\right)\) for all real \(x \ne 3\). The inverse function \(f^{-1}\) is undefined at "
     r"exactly one real value. What is the sum of that value and \(f(4)\)?", "inverse", "n-gram"),
    ("Let f(x) = (2x + 1)/(x − 3) for all real x ≠ 3. The inverse function f⁻¹ is undefined at exactly one real value. "
     "What is the sum of that value and f(4)?", "inverse", "n-gram"),
    ("How many positive integers less than 1000 are divisible by three but not by five or seven, and end in an even digit?",
     "count", "n-gram"),
    (COUNT.replace(r"$1{,}000$", r"$1\,000$"), "count", "n-gram"),
    (COUNT.replace(r"$1{,}000$", "2,500").replace("$7$", "11"), "count", "other numbers"),
    ("Triangle ABC has a right angle at C. Point D lies on AB so that CD is perpendicular to AB. If AD=9 and DB=16, what is "
     "the area of triangle ABC?", "foot", "n-gram"),
    (POND[: POND.index(" Choose")], "pond", "n-gram"),
    (POND[: POND.index("(A)")], "pond", "n-gram"),
    (HANDS.replace("In a group", "12. In a group"), "hands", "n-gram"),
    (GOATS.replace("，", ", ").replace("？", "?"), "goats", "exact"),
    (GOATS.replace("一个农夫", "问题：老王"), "goats", "n-gram"),
]  # fmt: skip
PRIME = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
CLEAN = [
    f"Three red and five blue balls are in a bag, two are drawn. The odds for two red ones are $\\frac{{m}}{{n}}$, {PRIME}",
    f"Two cards are drawn from a deck. The probability that both are hearts can be written as $\\frac{{m}}{{n}}$, {PRIME}",
    f"A cone has a height of 9. Its volume divided by that of a ball can be written as $\\frac{{m}}{{n}}$, {PRIME}",
    f"The area of the region common to both squares is $\\frac{{m}}{{n}}$, {PRIME}",
    f"Sam tosses a coin until two heads come in a row. The expected number of tosses is $\\frac{{m}}{{n}}$, {PRIME}",
    r"Triangle $ABC$ has a right angle at $C$. If $AB = 10$ and $BC = 6$, what is the length of $AC$?",
    r"Point $D$ lies on $\overline{AB}$ so that $CD$ bisects angle $C$. Find $AD$ if $AC = 8$, $BC = 12$ and $AB = 15$.",
    r"Triangle $PQR$ is isosceles with $PQ = PR = 13$ and $QR = 10$. What is the area of triangle $PQR$?",
    "How many positive integers less than 500 are divisible by 4?",
    "How many positive integers less than 1000 have digits that add up to 9?",
    r"Let $f(x) = \frac{3x-2}{x+5}$ for all real $x \neq -5$. Find $f^{-1}(2)$.",
    "A farmer has twelve cows and sells a third of them. How many cows does the farmer have now?",
    "A farmer has seventeen sheep and wants to fence a field of 400 square metres for them. What does the fence cost?",
    "A circular table with a radius of 7 metres is covered by a cloth that hangs down 2 metres. What is the area of the cloth?",
    "In a group of 8 people two are chosen at random. How many pairs are there?",
    "Choose one of the options and answer with its letter alone.\nWhich planet is largest? (A) Mars (B) Jupiter (C) Venus",
    "农夫有一块三角形的田地，底边长二十米，高十二米。这块田地的面积是多少平方米？",
    "Please reason step by step, and put your final answer within \\boxed{}. What is 3 plus 4?",
]  # fmt: skip


def main() -> None:
    from vold_nemo.data.overlap import EvaluationTable, question_key
    from vold_nemo.data.prompts import Prompt

    def ask(name: str, text: str) -> Prompt:
        return Prompt(name, [{"role": "user", "content": text}])

    train = [prompt for prompt, *_ in CONTAMINATED] + CLEAN
    for ngram in (5, 8, 13):
        for share in (1e-9, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            table = EvaluationTable(ngram, 10, share, "any")
            table.add("test", [ask(name, text) for name, text in EVALUATION.items()])
            table.close()
            table.learn_phrases(train)
            found = [table.match(text, question_key(ask("", text))) for text in train]
            right = sum(m is not None and m.id == name for m, (_, name, _) in zip(found, CONTAMINATED, strict=False))
            wrong = sum(match is not None for match in found[len(CONTAMINATED) :])
            print(f"{ngram:>2} words, share {share:<5.1g}: {right} of {len(CONTAMINATED)} found, {wrong} of {len(CLEAN)} taken")


if __name__ == "__main__":
    main()
