"""``python -m nlattn``, the same as the command ``nlattn``."""

import sys

from nlattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
