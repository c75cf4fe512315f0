"""Other tools' rule-based functions on our hand-made answers, run in an environment of their own.

    python their_verdicts.py LMMS_EVAL_SOURCE VLMEVALKIT_SOURCE < cases.json > verdicts.json

The functions are loaded from the files that hold them, since importing the packages would need torch and API clients.  Needs
numpy, tqdm and latex2sympy2 (which asks for another antlr than this project has).  tests/evaluation/agreement_page.py calls it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import sys
import types
from pathlib import Path


def load(file: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def functions(*sources: tuple[Path, str]) -> dict:
    """The named functions of files whose other imports are not here."""
    names: dict = {}
    for file, name in sources:
        [found] = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) == name]
        exec(ast.unparse(found), names)  # the sources of a tool that we compare ourselves with
    return names


def main() -> None:
    lmms, kit = Path(sys.argv[1]) / "lmms_eval" / "tasks", Path(sys.argv[2]) / "vlmeval"
    cases = json.load(sys.stdin)
    mmmu = load(lmms / "_task_utils" / "mmmu_mcq_utils.py", "mmmu_mcq_utils")
    mcq = load(lmms / "_task_utils" / "mcq_extract.py", "mcq_extract")
    math = load(lmms / "mathvision" / "eval_utils.py", "mathvision_eval_utils")
    for name in ("vlmeval", "vlmeval.smp", "vlmeval.smp.log"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["vlmeval.smp.log"].get_logger = lambda *_: None
    yes_no = functions(
        (lmms / "mme" / "utils.py", "parse_pred_ans"), (kit / "smp" / "misc.py", "process_punctuation"),
        (kit / "dataset" / "utils" / "yorn.py", "YOrN_Extraction"),
    )  # fmt: skip
    infer = load(kit / "utils" / "matching_util.py", "matching_util")

    def mmmu_letter(response: str, options: list[str]) -> str | None:
        """None where the choice is drawn at random."""
        index, letters = mmmu.get_multi_choice_info(options)
        drawn = set()
        for seed in range(8):
            random.seed(seed)
            drawn.add(mmmu.parse_mmmu_multi_choice_response(response, letters, index))
        return drawn.pop() if len(drawn) == 1 else "random"

    def mathvision(response: str, truth: str) -> bool:
        """tasks/mathvision/utils.py, mathvision_process_results, for a question without options."""
        answer = response.strip()
        if math.is_number(answer.split("is ")[-1].rstrip(".")):
            answer = answer.split("is ")[-1].rstrip(".")
        if "oxed{" not in answer:
            for flag in ("the final answer is", "the answer is", "the correct answer is", "the answer should be"):
                for said in (flag, flag.replace("the", "The")):
                    if said in answer:
                        answer = answer.split(said)[-1].strip().split("\n")[0].split(". ")[0]
        elif answer.count("oxed{") > 1:
            answer = "\\boxed{" + answer.split("oxed{")[-1]
        return bool(math.is_equal(truth, math.find_math_answer(answer).rstrip(".").lstrip(":").strip()))

    def guarded(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # a crash is a finding
            return f"{type(error).__name__}"

    verdicts = {"choice": [], "math": [], "yes_no": []}
    for response, options in cases["choice"]:
        letters = "ABCDEFGHIJ"[: len(options)]
        verdicts["choice"].append(
            {
                "lmms-eval MMMU": guarded(mmmu_letter, response, options),
                "lmms-eval MMStar": guarded(mcq.extract_mcq_answer, response, list(letters)) or None,
                "VLMEvalKit": guarded(infer.can_infer, response, dict(zip(letters, options, strict=False))) or None,
            }
        )
    for response, truth in cases["math"]:
        verdicts["math"].append({"lmms-eval MathVision": guarded(mathvision, response, truth)})
    for response in cases["yes_no"]:
        said = {
            "lmms-eval MME": guarded(yes_no["parse_pred_ans"], response),
            "VLMEvalKit": guarded(yes_no["YOrN_Extraction"], response).lower(),
        }
        verdicts["yes_no"].append({tool: word if word in ("yes", "no") else None for tool, word in said.items()})
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main()
