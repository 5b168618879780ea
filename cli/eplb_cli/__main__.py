"""The entry point of `eplb` and of `python -m eplb_cli`; Ctrl-C is handled from the first import on."""

import sys

from eplb_cli.exit_codes import INTERRUPTED


def main() -> None:
    """Entry point of the `eplb` script."""
    try:
        from eplb_cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
