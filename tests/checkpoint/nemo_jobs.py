"""A NeMo model around a tiny GPTModel, and the jobs that worker ranks do with it.  Importing this imports NeMo."""

from __future__ import annotations

import contextlib
import os

import torch
import torch.distributed as dist
from nemo.core.classes import ModelPT
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

from tests.megatron import tiny
from vold_nemo.checkpoint import nemo_archive, sharded
from vold_nemo.megatron import architecture, build, parallel, weights

LAYOUT = None  # a model joins the layout that its process is in


class TinyModel(ModelPT):
    """Holds this rank's shard as a submodule, as any ModelPT holds its network."""

    nemo_folders = ("checkpoint.path",)

    def __init__(self, cfg, trainer=None):
        super().__init__(cfg, trainer)
        self.arch = architecture.Architecture(**OmegaConf.to_container(cfg.architecture))
        rows = architecture.padded_vocabulary([self.arch.vocabulary], LAYOUT.tensor)
        self.model = build.build_model(self.arch, LAYOUT, padded_vocabulary=rows, dtype=torch.float32)

    def save_weights(self, folder):
        sharded.save_model(self.model, folder)

    def load_weights(self, folder):
        sharded.load_model(self.model, folder)

    def setup_training_data(self, cfg):
        pass

    def setup_validation_data(self, cfg):
        pass

    @classmethod
    def list_available_models(cls):
        return []


@contextlib.contextmanager
def layout(tensor: int, pipeline: int):
    global LAYOUT
    AppState().model_parallel_size = None  # what another model in this process left
    LAYOUT = parallel.initialize(tensor, pipeline, seed=1, device="cpu")
    try:
        yield LAYOUT
    finally:
        dist.barrier()
        AppState().model_parallel_size = None
        parallel.destroy()


def loaded(path) -> TinyModel:
    from dataclasses import asdict

    arch = architecture.read(path)
    model = TinyModel(OmegaConf.create({"checkpoint": {"path": str(path)}, "architecture": asdict(arch)}))
    weights.load_hf(model.model, arch, LAYOUT, weights.Files(path))
    return model


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def through_nemos_own_archive(path, file):
    """What this rank has before and after NeMo's own save and restore, at TP2."""
    with layout(2, 1):
        model = loaded(path)
        before = parameters(model)
        model.save_to(str(file))  # rank 0 writes; nobody is told that there are others
        dist.barrier()
        config = OmegaConf.to_container(model.cfg)
        del config["target"]  # NeMo refuses to import classes outside its own packages
        again = TinyModel.restore_from(
            str(file), save_restore_connector=SaveRestoreConnector(), map_location="cpu",
            override_config_path=OmegaConf.create(config),
        )
        return before, parameters(again)


def through_lightnings_checkpoint(path, file):
    """The same for a Lightning checkpoint."""
    import lightning.pytorch as lightning

    with layout(2, 1):
        model = loaded(path)
        before = parameters(model)
        trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
        trainer.strategy.connect(model)
        if dist.get_rank() == 0:  # as Lightning's DDP strategy does
            trainer.save_checkpoint(file)
        dist.barrier()
        again = loaded(path)
        again.load_state_dict(torch.load(file, weights_only=False)["state_dict"])
        return before, parameters(again)


def save_ours(path, file, tensor, pipeline, pack):
    with layout(tensor, pipeline) as here:
        model = loaded(path)
        nemo_archive.attach(model, here)
        model._save_restore_connector.pack_nemo_file = pack
        model.save_to(str(file))
        return parameters(model)


def restore_ours(file, tensor, pipeline, ids, unpacked=None):
    """(weights, hidden states, the restored configuration's folder holds a config.json) in this layout."""
    with layout(tensor, pipeline) as here:
        connector = nemo_archive.sharded_connector()()
        connector.model_extracted_dir = unpacked
        model = TinyModel.restore_from(str(file), save_restore_connector=connector)
        with torch.no_grad():
            hidden = tiny.run_stages(model.model, here, ids)
        return parameters(model), hidden, os.listdir(model.cfg.checkpoint.path)


def config_of(file):
    connector = nemo_archive.sharded_connector()()
    return OmegaConf.to_container(TinyModel.restore_from(str(file), save_restore_connector=connector, return_config=True))


SLURM = {
    "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "2",
}


@contextlib.contextmanager
def inside_slurm():
    os.environ.update(SLURM)
    try:
        yield
    finally:
        for key in SLURM:
            del os.environ[key]


def log_a_run(folder, steps, resume):
    """A run with TensorBoard, inside what looks like a Slurm job; the files it made."""
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config import LoggingConfig

    with inside_slurm():
        run = Run(folder, rank=0, config={"a": {"b": 1}, "c": "${a.b}"}, logging=LoggingConfig())
        if resume is not None:
            run.resume_at(resume)
        for step in steps:
            run.log(step, {"loss": float(step), "seconds": {"train": 0.5}, "note": "text"})
        run.close()
    return sorted(os.listdir(folder)), os.listdir(f"{folder}/tensorboard")


def log_where_the_folder_goes(folder):
    """TensorBoard's files vanish between two steps: (loggers left, what was warned of, lines of metrics, steps logged)."""
    import logging
    import shutil
    import time

    from lightning.pytorch.loggers import TensorBoardLogger

    from vold_nemo.checkpoint import run_folder

    said = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    run_folder.logger.addHandler(listener)
    try:
        run = run_folder.Run(folder, rank=0)
        run.loggers = [TensorBoardLogger(f"{folder}/board", flush_secs=0)]
        run.log(1, {"reward": 0.0})
        before = len(run.loggers)
        shutil.move(f"{folder}/board", f"{folder}/gone")  # at once: its thread may be writing
        step = 1
        while run.loggers and step < 1000:  # the writer is a thread: some calls pass before its failure is known
            step += 1
            run.log(step, {"reward": 0.0})
            time.sleep(0.01)
        run.log(step + 1, {"reward": 1.0})
        left = len(run.loggers)
        run.close()
    finally:
        run_folder.logger.removeHandler(listener)
    return before, left, said, len(run.metrics.read_text().splitlines()), step + 1


def trainer_of_a_run(folder):
    """(environment plugin, callbacks) of the trainer that exp_manager is handed inside a Slurm job."""
    import lightning.pytorch as lightning

    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config import LoggingConfig

    made, trainer_class = [], lightning.Trainer

    def watched(**kwargs):
        made.append(trainer_class(**kwargs))
        return made[0]

    lightning.Trainer = watched
    try:
        with inside_slurm():
            Run(folder, rank=0, logging=LoggingConfig())
    finally:
        lightning.Trainer = trainer_class
    connector = made[0]._accelerator_connector
    return type(connector.cluster_environment).__name__, [type(c).__name__ for c in made[0].callbacks]
