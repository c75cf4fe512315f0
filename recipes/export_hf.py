"""A run's newest weights as an ordinary Hugging Face checkpoint.

    python recipes/export_hf.py experiment=miniature export.run=miniature/sft
    python recipes/export_hf.py experiment=miniature export.run=student.nemo export.path=my_student
    torchrun --nproc-per-node 8 recipes/export_hf.py ... parallel.tensor=8        on GPUs, a model too large for one

``export.run`` is a run folder under ``outputs`` (its newest checkpoint, else its ``student.nemo``) or a ``.nemo`` file.
If the newest is damaged, that is an error; ``export.step=N`` takes another one.
The trained language model is written over ``export.source``'s; vision tower, projector, tokenizer, processor and chat template
are carried from there byte for byte (adopted tokens are appended to the tokenizer's files); README.md says how the model was
made, vold_lineage.json where it comes from.  Any layout reads what any layout wrote; one process (a login node, device=cpu)
reads a layer at a time and never holds the model, unless it is to verify.
``export.verify=true`` loads the result with transformers and compares log-probs.  ``export.push=user/name`` sends it to the
Hugging Face hub, private unless ``export.private=false``, with the token in HF_TOKEN; after an evaluation of the export, so
that the card has its scores.
"""

from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config, ConfigError


def push_plan(config: Config) -> None:
    from vold_nemo.checkpoint import hub

    if config.export.push is not None:
        print(hub.describe(config.export, out_path(config, Path(config.outputs) / config.export.run)))


def is_one_process(config: Config) -> bool:
    """A layout of one rank: more of them would only make the same copy."""
    return config.parallel.model_ranks == 1


@recipe(reads=("export", "parallel", "seed", "device", "precision"), plan=push_plan, alone=is_one_process)
def main(config: Config) -> None:
    import torch

    from vold_nemo.checkpoint import hub, lineage, sharded
    from vold_nemo.checkpoint.export import export_hf
    from vold_nemo.checkpoint.model_card import model_card
    from vold_nemo.checkpoint.parity import verify
    from vold_nemo.checkpoint.shard_stream import stream_shards
    from vold_nemo.config.launcher import is_first_rank
    from vold_nemo.config.writing import replace_text
    from vold_nemo.evaluation.card import card_scores
    from vold_nemo.megatron import architecture, build, parallel, weights

    options, run = config.export, run_path(config)
    out = out_path(config, run)
    if options.push is not None and is_first_rank():
        hub.prepare(options)
    layout = parallel.initialize(
        config.parallel.tensor, config.parallel.pipeline, expert=config.parallel.expert, seed=config.seed,
        device=config.device,
    )  # fmt: skip
    if options.verify and layout.world > 1:
        raise ConfigError("export.verify", True, "false with several ranks", "verify in one process, or not at all")
    arch = architecture.read(options.source)
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16

    def loaded(folder: Path):
        padded = architecture.padded_vocabulary([arch.vocabulary], layout.tensor)
        model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=dtype, trainable=False)
        sharded.load_model(model, folder)
        return model

    with trained_weights(run, options.step) as (folder, said):
        if layout.world == 1:
            stream = stream_shards(folder, arch, layout, dtype)
        else:
            stream = weights.stream_hf(loaded(folder), arch, layout)
        card = model_card(run, options.source, said, repo=options.push) if layout.rank == 0 else None
        report = export_hf(
            stream, options.source, out, options.max_shard_bytes, write=layout.rank == 0, card=card, origin=lineage.read(run)
        )
        model = loaded(folder) if options.verify else None
    if report is not None:
        if scores := card_scores(Path(options.results), report.path):  # known now that the weights are there
            card = model_card(run, options.source, said, scores=scores, repo=options.push)
            replace_text(report.path / "README.md", card)
        print(
            f"{said} -> {report.path}: {report.nbytes / 2**20:,.1f} MiB in {report.files} file(s), "
            f"{report.trained} tensors trained, {report.carried} carried byte for byte from {options.source}"
        )
    if options.verify:
        parity = verify(model, arch.vocabulary, out, device=layout.device)
        print(f"transformers agrees: largest log-prob difference {parity.max:.2g} over {parity.tokens} tokens")
    parallel.destroy()
    if report is not None and options.push is not None:
        print(f"pushed to {hub.push(report.path, options)}")


def out_path(config: Config, run: Path) -> Path:
    if config.export.path:
        return Path(config.export.path)
    return (run.with_suffix("") if run.suffix == ".nemo" else run) / "hf"


def run_path(config: Config) -> Path:
    """A ``.nemo`` file as given or under ``outputs``, or a run folder; ConfigError if there is none."""
    run = config.export.run
    for path in (Path(config.outputs) / run, Path(run)):
        if path.is_dir() or (path.is_file() and path.suffix == ".nemo"):
            return path
    raise ConfigError("export.run", run, f"a run folder under {config.outputs}, or a .nemo file",
                      "train first, or correct export.run")  # fmt: skip


def trained_weights(run: Path, step: int | None = None):
    """Context manager: (folder of sharded weights, what it is in words); ``step``: of which checkpoint, None = the newest."""
    import contextlib
    import tempfile

    from vold_nemo.checkpoint.archive_file import unpack
    from vold_nemo.checkpoint.loading import chosen

    @contextlib.contextmanager
    def opened():
        found = chosen(run / "checkpoints", step) if run.is_dir() else None
        if found is not None:
            yield found / "shards", str(found)
            return
        archive = run / "student.nemo" if run.is_dir() else run
        if not archive.is_file():
            raise ConfigError(
                "export.run", str(run), "a folder with checkpoints/ or student.nemo", "train this run first"
            )
        with tempfile.TemporaryDirectory() as folder:  # every rank unpacks its own: ranks may be on several nodes
            yield unpack(archive, folder) / "weights", str(archive)

    return opened()


if __name__ == "__main__":
    main()
