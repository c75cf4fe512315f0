"""The benchmarks: what each is read from, and how.

A revision pins the files; hub ids and revisions were taken from the hub's own pages.  ``revision=None`` where no full commit
was known when this table was written: then ``main`` as it lies in the cache is read, and recipes/prefetch.py locks its hash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.evaluation.benchmarks import rows
from vold_nemo.evaluation.benchmarks.question import Question


@dataclass(frozen=True)
class Benchmark:
    """``files`` are patterns below the folder of the data set, in the order in which they are read."""

    name: str
    title: str
    hub: str
    revision: str | None
    files: tuple[str, ...]
    question: Callable[[dict, Path | None], Question]
    paper: str  # arXiv
    numbered: bool = False  # question() also gets the number of the file, from 1 (DynaMath's variants)


_ALL = (
    Benchmark("mmmu_pro_standard", "MMMU-Pro (standard, 10 options)", "MMMU/MMMU_Pro",
              "1ddaa84fa5be3307a146d5cf2475c61096812f2d", ("standard (10 options)/test-*.parquet",),
              rows.mmmu_pro_standard, "2409.02813"),
    Benchmark("mmmu_pro_vision", "MMMU-Pro (vision)", "MMMU/MMMU_Pro", "1ddaa84fa5be3307a146d5cf2475c61096812f2d",
              ("vision/test-*.parquet",), rows.mmmu_pro_vision, "2409.02813"),
    # Later commits of MathVision correct two keys (questions 338 and 1826).
    Benchmark("mathvision", "MathVision", "MathLLMs/MathVision", "14b5e86a95856c4231a056b82f658584eae2b309",
              ("data/test-*.parquet",), rows.math_vision, "2402.14804"),
    Benchmark("mathvista", "MathVista (testmini)", "AI4Math/MathVista", "f3fd760f4b41d82969df0b9cde95bb0cb7ae1932",
              ("data/testmini-*.parquet",), rows.math_vista, "2310.02255"),
    Benchmark("logicvista", "LogicVista", "lscpku/LogicVista", None, ("data/test-*.parquet", "dataset.json"),
              rows.logic_vista, "2407.04973"),
    Benchmark("mathverse", "MathVerse (testmini)", "AI4Math/MathVerse", "268dfc55b62296be3bdf6406d6dea07bd06a7d64",
              ("testmini.parquet", "testmini_text_only.parquet"), rows.math_verse, "2403.14624"),
    Benchmark("mmstar", "MMStar", "Lin-Chen/MMStar", "bc98d668301da7b14f648724866e57302778ab27", ("mmstar.parquet",),
              rows.mmstar, "2403.20330"),
    Benchmark("dynamath", "DynaMath", "DynaMath/DynaMath_Sample", "172ee11086d0d2165517a2e92c9bde8bba4b7945",
              tuple(f"data/sample{i}-*.parquet" for i in range(1, 11)), rows.dynamath, "2411.00836", numbered=True),
    Benchmark("wemath", "We-Math (testmini)", "We-Math/We-Math", None, ("data/testmini-*.parquet", "testmini.json"),
              rows.we_math, "2407.01284"),
    Benchmark("mmmu", "MMMU (validation)", "lmms-lab/MMMU", "364f2e2eb107b36e07ff4c5a15f5947a759cef47",
              ("data/validation-*.parquet",), rows.mmmu, "2311.16502"),
    Benchmark("geometry3k", "Geometry3K (test)", "hiyouga/geometry3k", None, ("data/test-*.parquet",), rows.geometry3k,
              "2105.04165"),
    Benchmark("mme", "MME", "lmms-lab/MME", "d6c9023f017b564f7b3ccccf5348166bce8fdbcd",
              ("data/test-*.parquet",), rows.mme, "2306.13394"),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ConfigError("evaluate.benchmarks", name, " | ".join(BENCHMARKS), "correct the name")
    return BENCHMARKS[name]
