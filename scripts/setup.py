"""`make setup`: the system packages and the three environments, and nothing else."""

import sys

from environments import SetupError, build, check_python, install_system_packages

if __name__ == "__main__":
    try:
        check_python()
        install_system_packages()
        for service in ("trainer", "api", "frontend"):
            build(service)
    except SetupError as error:
        sys.exit(f"make setup: {error}")
