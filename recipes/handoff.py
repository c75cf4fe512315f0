"""Hand a checkpoint to lmms-eval or VLMEvalKit, and bring their answers back into the same tables.

    python recipes/handoff.py handoff.model=outputs/paper_3b/sft_vold/hf evaluate.benchmarks=[mathvista,mmstar]
    python recipes/handoff.py handoff.tool=vlmevalkit handoff.bring=T20261125/ handoff.arm=vold_vlmevalkit

The first writes ``<handoff.path>/<tool>.sh``, to be run where that tool is installed.  The second reads its files of answers
and writes ``answers/<arm>.jsonl`` and ``results.json``, which recipes/compare.py and recipes/report.py read.  Verdicts are
theirs, or ours with ``handoff.scorer=ours`` (then the published questions must be here).
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("handoff", "evaluate", "reward", "data"))
def main(config: Config) -> None:
    from vold_nemo.evaluation.benchmark import summary
    from vold_nemo.evaluation.handoff import bring_in, write_script

    if config.handoff.bring is None:
        script = write_script(config)
        print(script.read_text(), end="")
        print(f"script: {script}")
        return
    print(summary(bring_in(config)))
    print(f"results: {config.handoff.path}/results.json")


if __name__ == "__main__":
    main()
