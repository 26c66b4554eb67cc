"""`python -m dpm`: the command line."""

import sys

from dpm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
