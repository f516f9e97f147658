# make quickstart: set up, pretrain on photographs of scikit-image, evaluate, show.
#                   make test: the same set-up, then all tests.
#                   make docs: the site, into site/.
.PHONY: quickstart test check docs clean
PYTHON ?= python3
BIN := .venv/bin

quickstart: .venv/ready
	$(BIN)/ssl-zoo fit --config quickstart
	@echo "for other commands, enter this environment: . .venv/bin/activate"

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# not --quiet, which drops the warnings before --strict counts them
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# uv installs in a sixth of pip's time; where it cannot be had, or does not know the index that pip was told of, pip does
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "ssl_zoo needs Python 3.11 to 3.13 and $(PYTHON) is another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@echo "installing ssl_zoo and what it needs into .venv: some gigabytes, once"
	@$(BIN)/pip install --quiet --disable-pip-version-check uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
	  $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv
