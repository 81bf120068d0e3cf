"""``python -m tlkit``: the command."""

import sys

from tlkit._cli import main

if __name__ == "__main__":
    sys.exit(main())
