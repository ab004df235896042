# make demo: the whole of MVQ distillation in minutes; make test: the test suite; make docs:
# the documentation as a site, in site/. All make .venv first, from a package index alone.

PYTHON ?= python3
# More arguments of pip, for example an index with torch for CPUs alone:
# make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

.PHONY: demo test docs venv lint clean

# pip 26.3 refuses a requirement of ESPnet 202511 (docs/install.md).
.venv/installed: setup.py espnet_mvq/__init__.py
	@$(PYTHON) -c "import sys; ok = (3, 10) <= sys.version_info < (3, 13); sys.exit(not ok and f'make: Python 3.10 to 3.12 needed, $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12')"
	@echo "Installing into .venv: some minutes, and gigabytes if torch comes with CUDA"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) "pip<26.3"
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) -e ".[s3prl,transformers,dev]"
	touch .venv/installed

venv: .venv/installed

demo: venv
	PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" egs/demo/asr1/run.sh

test: venv
	PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" \
		OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

docs: venv
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

lint: venv
	.venv/bin/python -m black --check .
	.venv/bin/python -m isort --check .
	.venv/bin/python -m flake8

clean:
	rm -rf egs/*/asr1/data egs/*/asr1/dump egs/*/asr1/exp
