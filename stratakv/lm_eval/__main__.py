"""`python -m stratakv.lm_eval ...` is the harness's own command line, with the model `stratakv` in it."""

import sys

from stratakv.errors import UserError
from stratakv.lm_eval.command import run

if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"stratakv lm-eval: error: {error}", file=sys.stderr)
        sys.exit(2)
