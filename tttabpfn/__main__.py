"""``python -m tttabpfn``."""

import sys

from tttabpfn.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
