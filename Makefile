# The commands of the project; README.md says what each does. Settings are environment variables.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
RUN = $(if $(PYTHON),$(PYTHON),$(error Python 3.11 or 3.12 is needed, and not found: install one, or name it with `make PYTHON=...`))

.PHONY: up setup test test-fast test-containers test-clients check clean

up:     ## fine-tune, merge, serve, chat
	@exec $(RUN) scripts/up.py

setup:  ## only the system packages and the environments
	@exec $(RUN) scripts/setup.py

test:   ## everything that CI runs
	@exec $(RUN) scripts/test.py

test-fast:  ## unit tests that are not marked slow, with coverage: minutes
	@exec $(RUN) scripts/test.py fast

test-containers:  ## only the container tests, in an engine of their own (root, Debian)
	@exec $(RUN) scripts/test.py containers

test-clients:  ## other people's clients, all of them, against the trained model: half an hour
	@exec $(RUN) scripts/test.py clients

check:  ## format, lint, layers and types only
	@exec $(RUN) scripts/test.py check

clean:  ## remove the environments; models and data in artifacts/ stay
	rm -rf .venv
