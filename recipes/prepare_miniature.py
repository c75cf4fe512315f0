"""Makes the embedded world of the miniature experiment: a teacher that reasons, a base student that reads, question files.

    python recipes/prepare_miniature.py experiment=miniature

Everything is trained from scratch on the CPU, 5 minutes on two cores, and kept under ``miniature.path``; a second run reuses
what is there.  ``miniature.processes=1`` trains one model after the other.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=("miniature",))
def main(config: Config) -> None:
    from vold_nemo.miniature.world import prepare

    for piece, what in prepare(config.miniature).items():
        print(f"{config.miniature.path}/{piece}: {what}")


if __name__ == "__main__":
    main()
