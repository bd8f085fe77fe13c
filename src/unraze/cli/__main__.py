"""`python -m unraze.cli`: the command line where `unraze` itself is not installed."""

import sys

from unraze.cli import main

sys.exit(main())
