"""`python -m stratakv` is the command `stratakv`."""

import sys

from stratakv.cli.main import main

sys.exit(main())
