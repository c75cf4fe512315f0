"""Makes the embedded world of the miniature experiment: a teacher that reasons, a base student that reads, question files.

    python recipes/prepare_miniature.py experiment=miniature

Everything is trained from scratch on the CPU, 5 minutes on two cores, and kept under ``miniature.path``; a second run reuses
what is there.  ``miniature.processes=1`` trains one model after the other.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config, ConfigError


@recipe(alone=True, reads=("miniature", "device"))
def main(config: Config) -> None:
    if config.device == "cuda":
        mend = "leave the key out; what comes after may run on a GPU"
        raise ConfigError("device", "cuda", "auto | cpu: this world is made on a CPU, wherever it is used", mend)
    from vold_nemo.miniature.world import prepare

    for piece, what in prepare(config.miniature).items():
        print(f"{config.miniature.path}/{piece}: {what}")


if __name__ == "__main__":
    main()
