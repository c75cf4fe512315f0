"""recipes/export_hf.py: trained weights, from a run's checkpoint or a .nemo file, come back as transformers reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.miniature.random_models import write_random_student

ROOT = Path(__file__).resolve().parents[2]


def write_run(source: str, folder: str, nemo: str) -> None:
    """On a gloo rank: the weights of ``source`` as the checkpoint ``folder``/checkpoints/step_3 and as a .nemo archive."""
    import torch.distributed as dist

    from vold_nemo.checkpoint import archive_file, sharded
    from vold_nemo.megatron import architecture, build, parallel, weights

    world = dist.get_world_size()
    layout = parallel.initialize(world, 1, seed=1, device="cpu")
    arch = architecture.read(source)
    padded = architecture.padded_vocabulary([arch.vocabulary, 64], world)  # padded for a larger teacher, unlike the export's
    model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=torch.float32, trainable=False)
    weights.load_hf(model, arch, layout, weights.Files(source))
    final = Path(folder) / "checkpoints" / "step_3"
    archive = Path(nemo).with_suffix("")
    if layout.rank == 0:
        (final / "shards").mkdir(parents=True)
        (archive / "weights").mkdir(parents=True)
    dist.barrier()
    sharded.save_model(model, final / "shards")
    sharded.save_model(model, archive / "weights")
    dist.barrier()
    if layout.rank == 0:
        archive_file.write_manifest(final, {"step": 3, "layout": {}})
        archive_file.pack(archive, Path(nemo), {"step": 3})
    dist.barrier()
    parallel.destroy()


# Python runs it first of all: the hub's API writes down what it is asked instead of asking a network.
FAKE_HUB = """
import json, os, types, huggingface_hub
class HfApi:
    def __init__(self, token): self.said = {"token": token}
    def create_repo(self, repo_id, **asked): pass
    def repo_info(self, repo_id): return types.SimpleNamespace(private=True)
    def upload_folder(self, repo_id, folder_path, **asked):
        self.said |= {"repo": repo_id, "files": sorted(os.listdir(folder_path))}
        with open(os.path.join(os.path.dirname(__file__), "said.json"), "w") as file: json.dump(self.said, file)
        return types.SimpleNamespace(commit_url="https://hub/me/mine/commit/1")
huggingface_hub.HfApi = HfApi
"""
SECRET = "hf_abcdefghijklmnop"


def export(*overrides: str, path: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "recipes" / "export_hf.py"), "experiment=miniature", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path}:{ROOT}".lstrip(":"), "HF_TOKEN": SECRET}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200)


@pytest.mark.parametrize("kind", ["run", pytest.param("nemo", marks=pytest.mark.long)])
def test_weights_that_two_ranks_trained_come_back_for_transformers(gloo, tmp_path, kind):
    source = write_random_student(tmp_path / "base")
    trained = write_random_student(tmp_path / "trained", seed=7)
    run, nemo = tmp_path / "outputs" / "run", tmp_path / "student.nemo"
    gloo(2).run(write_run, str(trained), str(run), str(nemo))
    out, fake = tmp_path / "exported", tmp_path / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(FAKE_HUB)
    done = export(
        f"outputs={tmp_path / 'outputs'}", f"export.run={'run' if kind == 'run' else nemo}", f"export.source={source}",
        f"export.path={out}", "export.verify=true", "export.push=me/mine", path=str(fake),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pushed = json.loads((fake / "said.json").read_text())
    assert (pushed["token"], pushed["repo"]) == (SECRET, "me/mine")
    assert {"README.md", "model.safetensors"} <= set(pushed["files"])
    assert "pushed to https://hub/me/mine/commit/1" in done.stdout and SECRET not in done.stdout + done.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.parent != fake
                and SECRET.encode() in file.read_bytes()]  # fmt: skip
    assert "transformers agrees" in done.stdout and ("step_3" in done.stdout) == (kind == "run")
    card = (out / "README.md").read_text()
    assert str(source) in card and "arxiv.org/abs/2510.23497" in card and ("step_3" if kind == "run" else nemo.name) in card
    found, before, after = (load_file(str(p / "model.safetensors")) for p in (out, source, trained))
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, before[name] if name.startswith("visual.") else after[name]), name


@pytest.mark.long
def test_a_damaged_newest_checkpoint_needs_a_word_to_take_an_older_one(gloo, tmp_path):
    source = write_random_student(tmp_path / "base")
    run = tmp_path / "outputs" / "run"
    gloo(2).run(write_run, str(source), str(run), str(tmp_path / "student.nemo"))
    newer = shutil.copytree(run / "checkpoints" / "step_3", run / "checkpoints" / "step_9")  # of step 3, it says
    options = (f"outputs={tmp_path / 'outputs'}", "export.run=run", f"export.source={source}")
    refused = export(*options)
    assert refused.returncode == CONFIGURATION_ERROR, refused.stderr[-3000:]
    assert str(newer) in refused.stderr and "export.step=3" in refused.stderr and not (run / "hf").exists()
    done = export(*options, "export.step=3")
    assert done.returncode == 0 and "step_3" in done.stdout, done.stderr[-3000:]
    absent = export(*options, "export.step=5")
    assert absent.returncode == CONFIGURATION_ERROR and "export.step" in absent.stderr


def test_a_run_that_does_not_exist_leaves_with_2_and_says_how_to_mend_it(tmp_path):
    done = export(
        f"outputs={tmp_path}", "export.run=nothing", f"export.source={write_random_student(tmp_path / 'base')}"
    )
    assert done.returncode == CONFIGURATION_ERROR and "export.run" in done.stderr and "Traceback" not in done.stderr
