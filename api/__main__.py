"""`python -m api`: nothing runs on import, because vLLM's worker processes import this package."""

import os
import sys

from api.cli import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: taking the interpreter and torch apart costs a second or more of every stop, and
    # crashes if a start that was interrupted is still importing. Nothing is left to clean up.
    os._exit(code)
