"""Run `python -m api`. Nothing runs on import, because vLLM's worker processes import this package."""

import os
import sys

from api.cli import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: finalising the interpreter and torch takes a second or more, and it crashes while a
    # start that was interrupted is still importing. Nothing is left to clean up.
    os._exit(code)
