"""`python -m eplb`: the command line, as `eplb` where the console script is on the PATH."""

from eplb_cli.__main__ import main

if __name__ == "__main__":
    main()
