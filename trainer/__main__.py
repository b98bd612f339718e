"""`python -m trainer VERB`."""

from trainer.cli import main

raise SystemExit(main())
