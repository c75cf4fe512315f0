"""doctor's comparison of an environment with the list of versions that goes with its torch, on environments that are played."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.planning.test_readiness import distribution
from vold_nemo.config import installed, places
from vold_nemo.megatron import packages, trouble
from vold_nemo.megatron.diagnosis import BAD, GOOD, NOTE, Finding

LIST = "megatron-core==0.16.1\ntransformers==5.19.0\naiohttp==3.14.5\nidna==3.20\n"


@pytest.fixture
def site(monkeypatch, tmp_path):
    """``site(name=version)``: an environment of these packages alone; the file ``list.txt`` beside it."""
    (tmp_path / "shared.txt").write_text("# what both have\n" + LIST)
    (tmp_path / "list.txt").write_text("-c shared.txt\ntorch==2.13.0\nsix==1.17.0 ; python_version < '3'\n")

    def make(**versions: str) -> Path:
        folder = tmp_path / "site"
        shutil.rmtree(folder, ignore_errors=True)
        for name, version in versions.items():
            distribution(folder, name.replace("_", "-"), version)
        monkeypatch.setattr(sys, "path", [str(folder)])
        return folder

    return make


def graded(tmp_path: Path) -> dict[str, tuple[str, str]]:
    return {line.topic: (line.grade, line.what) for line in packages.against_pins(tmp_path / "list.txt")}


def test_an_environment_as_listed_is_one_line(site, tmp_path):
    site(torch="2.13.0+cu129", megatron_core="0.16.1", transformers="5.19.0", aiohttp="3.14.5")
    assert graded(tmp_path) == {"versions": (GOOD, "4 packages as in list.txt")}


def test_what_matters_has_a_line_of_its_own_and_the_rest_is_summed(site, tmp_path):
    site(torch="2.12.1", megatron_core="0.17.0", transformers="5.23.0", aiohttp="3.0.0", idna="3.0")
    found = graded(tmp_path)
    assert found["torch"] == (BAD, "2.12.1; tested: 2.13.0") and found["megatron-core"] == (BAD, "0.17.0; tested: 0.16.1")
    assert found["transformers"] == (NOTE, "5.23.0; tested: 5.19.0")
    assert found["versions"] == (NOTE, "2 others differ from list.txt: aiohttp 3.0.0 (3.14.5), idna 3.0 (3.20)")
    mend = next(line.follows for line in packages.against_pins(tmp_path / "list.txt") if line.topic == "transformers")
    assert mend == 'pip install -c list.txt "transformers==5.19.0"'


def test_each_torch_has_its_list_and_others_are_said_to_have_none(monkeypatch, tmp_path):
    for cuda in ((13, 0), (12, 9)):
        assert packages.pins(places.constraints(cuda))["torch"] == "2.13.0"
    monkeypatch.setattr(installed, "torch_cuda", lambda: (12, 6))
    (line,) = packages.against_pins()
    assert line.grade == NOTE and "CUDA 12.6" in line.what


def test_vllm_that_wants_other_packages_is_told_with_them(site):
    folder = site(torch="2.13.0", transformers="5.23.0", numpy="2.4.6")
    distribution(folder, "vllm", "0.32.0", "torch==2.13.0", "transformers<5.20.0,>=5.16.1", "numpy<2.4")
    hard, soft = packages.unmet()
    assert (hard.grade, soft.grade) == (BAD, NOTE)
    assert "transformers<5.20.0,>=5.16.1 (5.23.0 is installed)" in hard.what and "numpy<2.4 (2.4.6" in soft.what
    site(torch="2.13.0")
    assert packages.unmet() == []


def test_an_engine_in_pieces_is_told(site, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    site(transformer_engine="2.20.2", transformer_engine_torch="2.19.0", transformer_engine_cu13="2.20.2")
    assert [line.grade for line in packages.engine()] == [BAD]
    site(torch="2.13.0", transformer_engine="2.20.2")  # a build from source has the one
    assert packages.engine() == []
    (tmp_path / installed.COMPILED).write_text(json.dumps({"torch": "2.12.0", "apex": "0.1"}))
    assert "apex 0.1 compiled for torch 2.12.0, and 2.13.0 is installed" in packages.engine()[0].what


def test_what_was_compiled_is_tried_and_its_end_is_told(tmp_path, monkeypatch):
    """Stand-ins that load, miss a symbol, kill the process and never end; ``torch`` is one, too."""
    bodies = {
        "torch": "", "loads": "", "hangs": "import time; time.sleep(60)", "kills": "import os; os.kill(os.getpid(), 11)",
        "misses": "raise ImportError('x.so: undefined symbol: _ZN3c106detail')",
    }  # fmt: skip
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {name: name for name in ("loads", "misses", "kills", "not_here")}
    found = {line.topic.removeprefix("import "): line for line in packages.compiled(60, modules)}
    assert set(found) == {"loads", "misses", "kills"}
    assert found["loads"].grade == GOOD and found["misses"].grade == found["kills"].grade == BAD
    assert "undefined symbol" in found["misses"].what and "another torch" in found["misses"].follows
    assert found["kills"].what.startswith("ended by signal 11") and "another torch" in found["kills"].follows
    assert packages.attempt_import("hangs", "hangs", 1).what == "not done after 1 s"


def test_a_report_of_trouble_holds_no_secret_and_no_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr(trouble, "_user", lambda: "alice")
    for name, value in {"NCCL_DEBUG": "INFO", "NCCL_TOKEN": "hidden", "HF_TOKEN": "hidden", "WANDB_API_KEY": "hidden"}.items():
        monkeypatch.setenv(name, value)
    found = [Finding(BAD, "storage", "/home/alice/outputs: quota", "see /scratch/alice/x, not /scratch/alicex")]
    monkeypatch.setenv("VLLM_HTTP_URL", "https://alice:hidden@proxy/x")
    private = ["cluster.launch.environment.WHATEVER=hidden", "+export.token=hidden", "cluster.launch.account=alice"]
    text = trouble.document(found, ["outputs=/home/alice/outputs", *private], 1)
    lines = [Finding(BAD, "interfaces", "eth0 (10.0.0.7, fe80::1234:5)"), Finding(BAD, "x", "/home/alice-b 12.9.1.4")]
    near = trouble.document(lines, [], 1)
    assert "10.0.0.7" not in near and "fe80" not in near and "/home/alice-b 12.9.1.4" in near
    told = json.loads(text)
    assert "\n" not in text and "hidden" not in text and "/alice/" not in text
    assert told["findings"] == [{"grade": BAD, "topic": "storage", "what": "~/outputs: quota",
                                 "follows": "see /scratch/USER/x, not /scratch/alicex"}]  # fmt: skip
    assert told["environment"]["NCCL_DEBUG"] == "INFO" and told["code"] == 1 and told["arguments"] == [
        "outputs=~/outputs", "cluster.launch.environment.WHATEVER=***", "+export.token=***", "cluster.launch.account=USER"
    ]
    assert told["environment"]["VLLM_HTTP_URL"] == "https://***@proxy/x"
    assert told["versions"]["numpy"] == installed.version("numpy")
