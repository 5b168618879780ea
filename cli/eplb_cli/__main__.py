"""`python -m eplb_cli`: the command line where the console script is not installed."""

from eplb_cli.main import main

if __name__ == "__main__":
    main()
