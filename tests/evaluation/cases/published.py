"""Rows in each benchmark's published schema, with questions of our own.

Where each schema was read:

    mmmu_pro_*   github.com/MMMU-Benchmark/MMMU, mmmu-pro/infer/infer_transformers.py and its output/*.jsonl
    mmmu         lmms-eval tasks/mmmu/utils.py (lmms-lab/MMMU: one parquet of all subjects)
    mathvision   github.com/mathllm/MATH-V, data/test.jsonl; the parquet adds decoded_image (lmms-eval tasks/mathvision)
    mathvista    github.com/lupantech/MathVista, README (data format), data/testmini.json
    logicvista   github.com/Yijia-Xiao/LogicVista, data/dataset.json: an object of rows by id, images beside it
    mathverse    github.com/ZrrSkywalker/MathVerse, README and data/testmini.json
    mmstar       lmms-eval tasks/mmstar/utils.py
    dynamath     github.com/DynaMath/DynaMath, dataset/dataset.json; column names of the hub copy: lmms-eval tasks/dynamath
    wemath       github.com/We-Math/We-Math, data/testmini.json and README (result format)
    geometry3k   hiyouga/geometry3k: images, problem, answer
    mme          lmms-eval tasks/mme
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any


def png(shade: int = 200, size: int = 56) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


def image(shade: int = 200) -> dict[str, Any]:
    return {"bytes": png(shade), "path": "x.png"}


TEN = [f"{10 * i} m" for i in range(1, 11)]
_NONE = {f"image_{i}": None for i in range(2, 8)}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Benchmark -> rows of its file."""
    return {
        "mmmu_pro_standard": [
            {
                "id": "test_Physics_1",
                "question": "How far does the cart in <image 1> roll?",
                "options": str(TEN),
                "explanation": "?",
                "image_1": image(),
                **_NONE,
                "img_type": "['Diagrams']",
                "answer": "J",
                "topic_difficulty": "Easy",
                "subject": "Physics",
            },
            {
                "id": "validation_Art_2",
                "question": "Compare <image 1> and <image 2>. What differs?",
                "options": "['<image 3>', 'line', 'form']",
                "explanation": "?",
                "image_1": image(10),
                "image_2": image(20),
                "image_3": image(30),
                **{f"image_{i}": None for i in range(4, 8)},
                "img_type": "['Paintings']",
                "answer": "A",
                "topic_difficulty": "Hard",
                "subject": "Art",
            },
        ],
        "mmmu_pro_vision": [
            {"id": "test_Physics_1", "image": image(), "options": str(TEN), "answer": "J", "subject": "Physics"},
            {"id": "test_Physics_2", "image": image(), "options": "[broken", "answer": "A", "subject": "Physics"},
        ],
        "mmmu": [
            {
                "id": "validation_Basic_Medical_Science_3",
                "question": "What does <image 1> show?",
                "options": "['a bone', 'a nerve']",
                "explanation": "",
                "image_1": image(),
                **_NONE,
                "answer": "B",
                "question_type": "multiple-choice",
                "topic_difficulty": "Easy",
                "subfield": "Anatomy",
                "img_type": "['Pathological Images']",
            },
            {
                "id": "validation_Accounting_7",
                "question": "<image 1> What is the net income, in dollars?",
                "options": "[]",
                "explanation": "",
                "image_1": image(),
                **_NONE,
                "answer": "['8500', 'eight thousand five hundred']",
                "question_type": "open",
                "topic_difficulty": "Medium",
                "subfield": "Financial",
                "img_type": "['Tables']",
            },
        ],
        "mathvision": [
            {
                "id": "1",
                "question": "Which kite has the longest string?\n<image1>",
                "options": ["A", "B", "C", "D", "E"],
                "image": "images/1.jpg",
                "decoded_image": image(),
                "answer": "C",
                "solution": None,
                "level": 1,
                "subject": "metric geometry - length",
            },
            {
                "id": "2",
                "question": "What weekday was it?\n<image1>",
                "options": ["Monday", "Friday", "Sunday", "Tuesday", "Thursday"],
                "image": "images/2.jpg",
                "decoded_image": image(),
                "answer": "B",
                "solution": None,
                "level": 2,
                "subject": "logic",
            },
            {
                "id": "3",
                "question": "What is the ratio?\n<image1>",
                "options": [],
                "image": "images/3.jpg",
                "decoded_image": image(),
                "answer": "\x0crac{36}{13}",
                "solution": "...",
                "level": 5,
                "subject": "algebra",
            },
            {
                "id": "4",
                "question": "How large is the angle?\n<image1>",
                "options": [],
                "image": "images/4.jpg",
                "decoded_image": image(),
                "answer": "69{degrees}",
                "solution": None,
                "level": 4,
                "subject": "algebra",
            },
            {
                "id": "5",
                "question": "Which of the pictures A to E fits?\n<image1>",
                "options": [],
                "image": "images/5.jpg",
                "decoded_image": image(),
                "answer": "C",
                "solution": None,
                "level": 4,
                "subject": "logic",
            },
        ],
        "mathvista": [
            {
                "pid": "1",
                "question": "How long is AB?",
                "image": "images/1.jpg",
                "decoded_image": image(),
                "choices": ["9", "12", "15"],
                "unit": None,
                "precision": None,
                "answer": "12",
                "question_type": "multi_choice",
                "answer_type": "text",
                "metadata": {
                    "task": "geometry problem solving",
                    "category": "math-targeted-vqa",
                    "skills": ["geometry reasoning"],
                },
                "query": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
                "\nQuestion: How long is AB?\nChoices:\n(A) 9\n(B) 12\n(C) 15",
            },
            {
                "pid": "2",
                "question": "What share faces the camera?",
                "image": "images/2.jpg",
                "decoded_image": image(),
                "choices": None,
                "unit": None,
                "precision": 1.0,
                "answer": "0.6",
                "question_type": "free_form",
                "answer_type": "float",
                "metadata": {
                    "task": "visual question answering",
                    "category": "general-vqa",
                    "skills": ["statistical reasoning"],
                },
                "query": "Hint: ...\nQuestion: What share faces the camera?",
            },
            {
                "pid": "3",
                "question": "Between which years is the peak?",
                "image": "images/3.jpg",
                "decoded_image": image(),
                "choices": None,
                "unit": None,
                "precision": None,
                "answer": "[2007, 2008]",
                "question_type": "free_form",
                "answer_type": "list",
                "metadata": {"task": "figure question answering", "category": "general-vqa", "skills": []},
                "query": "Hint: ...\nQuestion: Between which years is the peak?",
            },
            {
                "pid": "4",
                "question": "How many grams?",
                "image": "images/4.jpg",
                "decoded_image": image(),
                "choices": None,
                "unit": "g",
                "precision": None,
                "answer": "1000",
                "question_type": "free_form",
                "answer_type": "integer",
                "metadata": {"task": "visual question answering", "category": "general-vqa", "skills": []},
                "query": "Hint: ...\nQuestion: How many grams? (Unit: g)",
            },
        ],
        "mathverse": [
            {
                "sample_index": "1",
                "problem_index": "1",
                "problem_version": "Vision Only",
                "question": "",
                "image": image(),
                "answer": "A",
                "question_type": "multi-choice",
                "metadata": {"split": "testmini", "subject": "Plane Geometry", "subfield": "Angle"},
                "query_wo": "...",
                "query_cot": "Please first conduct reasoning, and then answer the question and "
                "provide the correct option letter, e.g., A, B, C, D, at the end.",
                "question_for_eval": "How large is the angle?\nChoices:\nA:55°\nB:65°\nC:75°\nD:85°",
            },
            {
                "sample_index": "2",
                "problem_index": "2",
                "problem_version": "Text Dominant",
                "question": "Find x.",
                "image": image(),
                "answer": "4\\sqrt{3}",
                "question_type": "free-form",
                "metadata": {"split": "testmini", "subject": "Functions", "subfield": "Function"},
                "query_wo": "...",
                "query_cot": "Please first conduct reasoning, and then answer the question "
                "and provide the final value, e.g., 1, 2.5, 300, at the end.\nQuestion: Find x.",
                "question_for_eval": "Find x.",
            },
        ],
        "mmstar": [
            {
                "index": 0,
                "question": "Which is on top?\nOptions: A: The book, B: The cat, C: The cup, D: Nothing",
                "image": image(),
                "answer": "B",
                "category": "coarse perception",
                "l2_category": "image scene and topic",
                "meta_info": {"source": "x"},
            },
            {
                "index": 1,
                "question": "How much is it?\nOptions: A: 1,000, B: 2,000, C: 3,000, D: 4,000",
                "image": image(),
                "answer": "C",
                "category": "math",
                "l2_category": "geometry",
                "meta_info": {"source": "x"},
            },
        ],
        "dynamath": [
            {
                "id": "1",
                "question": "What is the period?",
                "image": "images/1.jpg",
                "decoded_image": image(),
                "ground_truth": "2.0944",
                "answer_type": "float",
                "subject": "analytic     geometry",
                "knowledge_level": "high school",
            },
            {
                "id": "2",
                "question": "Which is greater? Choices: (A) yes (B) no",
                "image": "images/2.jpg",
                "decoded_image": image(),
                "ground_truth": "B",
                "answer_type": "multiple choice",
                "subject": "statistics",
                "knowledge_level": "elementary school",
            },
            {
                "id": "3",
                "question": "Where is the point?",
                "image": "images/3.jpg",
                "decoded_image": image(),
                "ground_truth": "(3.000, 1.000)",
                "answer_type": "text",
                "subject": "analytic geometry",
                "knowledge_level": "high school",
            },
        ],
        "wemath": [
            {
                "ID": "2steps_1",
                "split": "testmini",
                "knowledge concept": concept,
                "question": "How long is the way?",
                "option": "A. 300, 400;B. 400, 300;C. 3000, 4000;D. 4000, 3000; E. No correct answer",
                "answer": "C",
                "image_path": image(),
                "key": key,
                "question number": i,
                "knowledge concept description": "...",
            }
            for i, (key, concept) in enumerate(
                [("2steps_1", "Length"), ("2steps_2", "Speed"), ("2steps_multi", "Length, Speed")]
            )
        ],
        "geometry3k": [
            {"images": [image()], "problem": "<image>Find x.", "answer": "2 \\sqrt { 221 }"},
            {"images": [image()], "problem": "<image>Find y.", "answer": "3"},
        ],
        "mme": [
            {
                "question_id": "code_reasoning/1.png",
                "image": image(),
                "question": "Is it 3? Please answer yes or no.",
                "answer": "Yes",
                "category": "code_reasoning",
            },
            {
                "question_id": "code_reasoning/1.png",
                "image": image(),
                "question": "Is it 4? Please answer yes or no.",
                "answer": "No",
                "category": "code_reasoning",
            },
            {
                "question_id": "existence/2.jpg",
                "image": image(),
                "question": "Is there a dog? Please answer yes or no.",
                "answer": "Yes",
                "category": "existence",
            },
        ],
    }


def write(folder: Path, name: str) -> Path:
    """The benchmark's files as they are published, below ``folder``."""
    import pyarrow
    import pyarrow.parquet

    root = folder / name
    if name == "logicvista":
        (root / "images").mkdir(parents=True)
        (root / "images" / "v1_0.png").write_bytes(png())
        facts = {
            "imagename": "v1_0.png",
            "reasoning": "...",
            "broad_capability": ["diagram"],
            "specific_capability": ["sequence"],
        }
        questions = {
            "v1_0": {**facts, "question": "Which of A-D comes next?", "answer": "C", "skill": ["inductive"]},
            "v1_1": {**facts, "question": "Which belong together?", "answer": "D, B", "skill": ["inductive"]},
            "v1_2": {**facts, "question": "How many?", "answer": "3", "skill": ["numerical"]},
            "v1_3": {**facts, "question": "Which turns left?", "answer": "", "skill": ["mechanical"]},
        }
        (root / "dataset.json").write_text(json.dumps(questions))
        return root
    from vold_nemo.evaluation.benchmarks.table import BENCHMARKS

    for pattern in BENCHMARKS[name].files:
        if (name == "mathverse" and "text_only" in pattern) or pattern.endswith(".json"):
            continue
        file = root / pattern.replace("*", "00000-of-00001")
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()[name]), file)
    return root


def load(folder, name: str, **options) -> list:
    """The questions of benchmark ``name`` that :func:`write` left in ``folder``."""
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.evaluation.benchmarks.load import load_benchmark

    settings = {"limit": None, "system_prompt": None, "rejected": Rejected(None, 0.9)} | options
    return load_benchmark(name, path=str(folder / name), **settings)
