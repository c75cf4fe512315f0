"""The command line of every recipe: ``python recipes/<verb>.py key=value ...``.

    @recipe(reads=("sft", "traces", ...), training=True)
    def main(config: Config) -> None: ...

    if __name__ == "__main__":
        main()

The order of events is chosen so that a mistake costs a second and not a queue: compose and check the whole
configuration first, then look whether this node has what it takes (planning/readiness.py), then import NeMo (about 12 s), then
call ``main``.  A recipe leaves with

    0    done
    2    configuration or input error: one message with key, value, what is allowed, how to mend
    85   stopped by a signal with a checkpoint written: submit again to go on
    86   a rank hung (models/heartbeat.py)
    130  interrupted from the keyboard
    1    anything else: a crash with its traceback; doctor: something is missing

Hydra's own errors leave with 2 as well.  torchrun turns every child's code into 1; ``srun`` passes it on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from omegaconf import OmegaConf

from vold_nemo.command.node import make_ready
from vold_nemo.command.quiet import quiet
from vold_nemo.config import Config, ConfigError, to_config
from vold_nemo.config.compose import HydraArguments, compose, enter_open_sections, register_schema
from vold_nemo.config.errors import NodeError
from vold_nemo.config.launcher import CONFIGURATION_ERROR, INTERRUPTED, is_first_rank, launch, stands_alone
from vold_nemo.config.own import own_folders, search_first, shadowed
from vold_nemo.config.places import conf
from vold_nemo.config.printable import guard
from vold_nemo.config.sources import with_local_folders
from vold_nemo.config.translate import as_config_error


def recipe(
    reads: tuple[str, ...] | None = None, training: bool = False, plan: Callable[[Config], None] | None = None,
    computes: bool = False, alone: bool | Callable[[Config], bool] = False,
):  # fmt: skip
    """Make ``main(config: Config) -> None`` a command.

    ``reads``: the sections and top-level keys that it reads, its own first: what ``--help`` explains, behind the docstring of
    the recipe's module, and what :func:`vold_nemo.config.reads.reads_of` says of it; None = any of them.  ``training``: run
    under NeMo's ``hydra_runner``, imported only once the configuration is known to be good; otherwise under Hydra alone.
    ``computes``: it works on ``device``, as whatever trains does, so that a node without what that takes is refused at once.
    ``alone``: it is one process (or is with this configuration): of several tasks of a job step the first does it, and says so.
    ``plan(config)``: what ``dry_run=true`` prints besides the resolved configuration and the plan of the stages; it must not
    touch a device.
    """

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        verb = Path(inspect.getfile(main)).stem

        @functools.wraps(main)
        def command() -> None:
            guard()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of printing and leaving with 1
            try:
                _run(main, verb, reads, training, plan, computes or training, alone)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr, flush=True)
                sys.exit(INTERRUPTED)
            except Exception as error:
                errors = as_config_error(error, sys.argv[1:])
                if not errors:
                    raise
                _report(errors)
                sys.exit(CONFIGURATION_ERROR)
            finally:
                _let_go(sys.stdout)

        return command

    return decorate


def _run(
    main: Callable[[Config], None], verb: str, reads: tuple[str, ...] | None, training: bool,
    plan: Callable[[Config], None] | None, computes: bool, alone: bool | Callable[[Config], bool],
) -> None:  # fmt: skip
    if alone is True and not stands_alone(verb):
        return
    arguments = HydraArguments.parse(sys.argv[1:])
    own = own_folders(arguments.config_dir)
    if arguments.help is not None:
        from vold_nemo.config.help import help_text

        with until_nobody_reads():
            print(help_text(verb, inspect.getmodule(main).__doc__ or "", None if arguments.help == "all" else reads, own))
        return
    if is_first_rank():
        _say_what_is_shadowed(own[1:] if arguments.config_dir else own)
    if arguments.inspects:  # --cfg, --info and the like only ask Hydra to print
        search_first(own)
        sys.argv[1:] = map(enter_open_sections, sys.argv[1:])
    else:
        config = with_local_folders(compose(arguments.overrides, arguments.config_dir))
        if callable(alone) and alone(config) and not stands_alone(verb):
            return
        waiting = _check(config, verb)
        if config.dry_run:
            if is_first_rank() and (reads is None or "reward" in reads):
                _try_verifiers(config)
            _dry_run(config, verb, plan, waiting)
            return
        make_ready(verb, training)
        sys.argv[1:] = arguments.argv()
        quiet()
        if computes:
            _check_gpus(config, verb)
        if training:
            _set_variables(config, verb)

    failed: list[Exception] = []

    def task(composed) -> None:
        try:
            main(with_local_folders(to_config(composed)))
        except Exception as error:  # kept from Hydra, which would print the overrides first, in words that nobody typed
            failed.append(error)

    # Hydra names the job after the function's module, and refuses "__main__" without a file.
    task = functools.update_wrapper(task, main)
    _runner(training and not arguments.inspects)(task)()
    for error in failed:
        raise error


def _let_go(log: TextIO) -> None:
    """What was printed is written now: Python would try when it exits, and leave with 120 where the log's disk is full."""
    try:
        log.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), log.fileno())


def _say_what_is_shadowed(folders: list[Path]) -> None:
    """``./conf`` is read because a command was started beside it: what it replaces is said, unless it is the same."""
    for folder in folders:
        names = shadowed(folder)
        if names:
            print(f"note: read from {folder}, not as shipped: {', '.join(names)}", file=sys.stderr, flush=True)


def _check(config: Config, verb: str) -> list[ConfigError]:
    """Raise every finding about this configuration at once; returns what is not here yet, where that only waits.

    A plan, a rehearsal and a dry run are made before anything is fetched, and what is not here yet only warns.
    """
    from vold_nemo.planning.validity import Pending, findings

    errors, waiting = findings(config, verb), []
    if (verb == "plan" and not config.strict) or verb == "rehearse" or config.dry_run:
        waiting, errors = [e for e in errors if isinstance(e, Pending)], [e for e in errors if not isinstance(e, Pending)]
    if errors:
        raise ExceptionGroup("configuration", errors)
    return waiting


def _dry_run(
    config: Config, verb: str, plan: Callable[[Config], None] | None, waiting: list[ConfigError]
) -> None:
    """Open what the verb will read, then say what would run.  Every rank looks, so that all leave with the same code."""
    from vold_nemo.planning.dry_run import opened

    found = opened(config, verb)
    if found.errors:
        raise ExceptionGroup("inputs", found.errors)
    if not is_first_rank():
        return
    for one in {error.key: error for error in (*waiting, *found.waiting)}.values():
        print(f"not here yet: {one}", file=sys.stderr, flush=True)
    with until_nobody_reads():
        _print_plan(config, verb, plan, found.said)


def _try_verifiers(config: Config) -> None:
    """Look for the verifiers, and call the user's own on the first row, in the processes in which they will be called."""
    from vold_nemo.planning.example import first_prompt
    from vold_nemo.rewards import Scorer

    scorer = Scorer(dataclasses.replace(config.reward, workers=1))
    scorer.check([None, *scorer.names.listed])
    own = [name for name in (None, *scorer.names.listed) if scorer.names.is_own(name)]
    if not own:
        return
    try:
        key = first_prompt(config, config.data.prompts, answers=True).answer
    except ConfigError:  # not here yet, which is said elsewhere
        key = None
    try:
        for warning in scorer.try_own((name, key) for name in own):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    finally:
        scorer.close()


def _check_gpus(config: Config, verb: str) -> None:
    from vold_nemo.planning.readiness import findings

    errors = findings(config, verb)
    if errors:
        raise ExceptionGroup("node", errors)


def _set_variables(config: Config, verb: str) -> None:
    """What is read when torch or megatron-core is imported, or CUDA begins (``config/environment.py``)."""
    from vold_nemo.config import driver, environment
    from vold_nemo.planning.readiness import means_gpus

    if means_gpus(config, verb, os.environ):
        environment.set_in(os.environ, environment.wanted(config, verb, driver.compute_capability()))


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """``... --help | head`` ends without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_plan(config: Config, verb: str, plan: Callable[[Config], None] | None, reads: list[str]) -> None:
    from vold_nemo.planning.resolved import describe

    print(OmegaConf.to_yaml(OmegaConf.structured(config)))
    print("\n".join([*filter(None, [describe(config, verb)]), *reads]))
    if plan is not None:
        plan(config)


def _runner(training: bool):
    register_schema()
    if not training:
        import hydra

        return hydra.main(version_base="1.3", config_path=str(conf()), config_name="config")
    import hydra.version

    hydra.version.setbase("1.3")  # hydra_runner sets none, and Hydra then warns and changes the working directory
    from nemo.core.config import hydra_runner

    from vold_nemo.command.quiet import quiet_nemo

    quiet_nemo()
    return hydra_runner(config_path=str(conf()), config_name="config")


def _report(errors: list[ConfigError]) -> None:
    """Rank 0 tells all; the others add one line each, and only where rank 0 may not have met the same error.

    What all ranks find, rank 0 is given the time to leave with first: a batch script shows the log of the rank that did.  What
    is wrong with one node, the first rank there tells.
    """
    if is_first_rank() or (any(isinstance(error, NodeError) for error in errors) and launch().local_rank == 0):
        print("\n\n".join(f"error: {error}" for error in errors), file=sys.stderr, flush=True)
    elif _world_is_up():
        print(f"rank {launch().rank}: error: {errors[0].key} = {errors[0].value!r}", file=sys.stderr, flush=True)
    else:
        time.sleep(3)


def _world_is_up() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
