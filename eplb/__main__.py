"""`python -m eplb`: the command line, as `eplb` where the console script is on the PATH."""

from eplb_cli.main import main

if __name__ == "__main__":
    main()
