"""`python -m tessera`: the command, where a launcher wants a module."""

import os
import traceback

from tessera.cli.main import main


def main_of_many() -> None:
    """The command as one of several processes, which end by `leave`."""
    from tessera.train.world import leave  # and torch with it, which no other command has to wait for

    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    leave(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    if os.environ.get("WORLD_SIZE", "1") == "1":
        main()
    else:
        main_of_many()
