# Every target sets up its own environment in .venv; nothing else is needed than Python >= 3.10 with pip.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-all style bench

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[training,evaluation,test]"
	# Its matchers check our baselines in the tests; the rest of what it asks for they do not import
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt torchcfm POT
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) examples/demo.py --output out/demo.png

test: $(STAMP)
	$(RUN) -m pytest -q -m "not slow"

test-all: $(STAMP)
	$(RUN) -m pytest -q

style: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(STAMP)
	$(RUN) benchmarks/overhead.py --output benchmarks/results/overhead.json
