"""`make setup`: install the system packages and the three environments."""

import sys

from environments import SetupError, build, build_trainer, check_python, install_system_packages
from services import Settings

if __name__ == "__main__":
    try:
        check_python()
        install_system_packages()
        build_trainer(Settings().profile)
        for service in ("api", "frontend"):
            build(service)
    except SetupError as error:
        sys.exit(f"make setup: {error}")
