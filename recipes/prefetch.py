"""Brings what an experiment needs into the hub cache, on a node with internet, and writes a lock file with hashes.

    HF_HOME=/shared/hf python recipes/prefetch.py experiment=paper_3b
    HF_HOME=/shared/hf python recipes/prefetch.py experiment=paper_3b prefetch.check=true     offline, before a job

Models and data sets of the hub come at their pinned revisions (``student.revision``, ``teacher.revision``); local paths are
hashed as they are.  ``prefetch.check=true`` downloads nothing: it compares this machine with the lock file and leaves with
2 if anything is missing, partial or changed.
"""

from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("prefetch", "student", "teacher", "teachers", "data", "prepare", "vold", "evaluate"))
def main(config: Config) -> None:
    from vold_nemo.planning.prefetch import check_lock, write_lock

    lock = Path(config.prefetch.lock)
    if not config.prefetch.check:
        write_lock(config, lock)
        print(f"lock file: {lock}")
        return
    errors = check_lock(config, lock)
    if errors:
        raise ExceptionGroup("prefetch", errors)
    print(f"all that this experiment needs is here, as {lock} says")


if __name__ == "__main__":
    main()
