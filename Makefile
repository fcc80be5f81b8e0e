# make lab | test | soak | site | pdf | release | grade | browser | mutants | digits | gpu-records | stored: each creates .venv on first use and again when the pins change.
.PHONY: lab test soak site pdf release grade browser mutants digits gpu-records stored clean
.DELETE_ON_ERROR:
SHELL := /bin/sh
# OpenMP's threads shall sleep while they wait: where others use the cores, spinning ones cost several times the time.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
comma := ,
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
ROOT_FLAG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

# BOOK=chapters opens the book itself, for its authors.
BOOK ?= reading
lab: $(VENV)/.book
	@$(BIN)/python tools/reading_copy.py
	$(BIN)/jupyter lab $(ROOT_FLAG) --LabApp.default_url=/lab/tree/$(BOOK)/00_start_here.ipynb $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest --nbval $(ARGS)

soak: $(VENV)/.test
	$(BIN)/python -m pytest -m soak $(ARGS)

# The book as a website, from the stored notebooks: site/_build/html/index.html. Asks no other host for anything.
site: $(VENV)/.site
	@OMP_NUM_THREADS=1 $(BIN)/python site/build.py $(ARGS)

# The book as one PDF: site/_build/pdf/book.pdf.
pdf: $(VENV)/.site
	@OMP_NUM_THREADS=1 $(BIN)/python site/pdf.py $(ARGS)

# Problem sets for students (assignments/release), and marks for what they hand in (assignments/submissions).
release grade: $(VENV)/.teaching
	@PYTHONPATH=. $(BIN)/python -m assignments.grading.$@ $(ARGS)

# A student's work in a real browser: Debian's chromium, found on the path or as CHROMIUM=/path/to/it.
browser: $(VENV)/.browser
	PYTHONPATH=. $(BIN)/python -m tools.browser $(ARGS)

# One slip at a time in every formula: which do the checks notice, which the tests? Goes on where it was stopped.
mutants: $(VENV)/.test
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutants $(ARGS)

digits: $(VENV)/.book
	$(BIN)/python -m ddpm_lib train digits $(ARGS)

# Trains the larger models on a GPU and measures them; goes on where it was stopped. ARGS='--minutes 9' for a piece.
gpu-records: $(VENV)/.book
	$(BIN)/python -m benchmarks.gpu_records $(ARGS)

# Runs notebooks and stores them as run. Widgets are left out, and streams joined (once all is run: nbconvert would
# join what stood there before), so two runs give the same file.
NOTEBOOKS ?= chapters/*.ipynb chapters/solutions/*.ipynb
STORE := $(BIN)/jupyter nbconvert --to notebook --inplace
stored: $(VENV)/.test
	PYTHONPATH=. OMP_NUM_THREADS=1 $(STORE) --execute --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False $(NOTEBOOKS)
	$(STORE) --coalesce-streams $(NOTEBOOKS)

clean:
	rm -rf $(VENV)

$(VENV)/pins.txt: environment.yml pyproject.toml
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		"$$python" -c '$(SUPPORTED)' >/dev/null 2>&1 && break; python=; done; \
	if [ -z "$$python" ]; then \
		echo "make: this book needs Python 3.11 to 3.14, and none was found (name one: make lab PYTHON=/path/to/python3)." >&2; \
		exit 1; fi; \
	$(BIN)/python -c '$(SUPPORTED)' >/dev/null 2>&1 || "$$python" -m venv $(VENV) >$(VENV).log 2>&1 || { rm -rf $(VENV); \
		echo "make: $$python could not create $(VENV) (on Debian and Ubuntu, install the package python3-venv): see $(VENV).log." >&2; \
		exit 1; }; \
	rm -f $(VENV).log
	@sed -nE 's/^ +(# )?- ([A-Za-z0-9_.-]+==[^ ]+).*/\2/p' environment.yml >$@.new
	@cat environment.yml pyproject.toml | cksum | sed 's/^/# /' >>$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi  # installs again only where the contents changed

# $(call install,EXTRAS): the package itself with its extras, each at its pin.
define install
	@$(BIN)/python -m pip download --quiet --no-deps --retries 1 --timeout 20 --dest $(VENV)/probe \
		"$$(grep '^einops==' $(VENV)/pins.txt)" >/dev/null 2>&1 || { \
		echo "make: the package index cannot be reached: the first set-up needs a network, later calls do not." >&2; exit 1; }
	@rm -rf $(VENV)/probe
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/pins.txt --editable '.[$(1)]'
	@touch $@
endef

$(VENV)/.book: $(VENV)/pins.txt tools/jupyterlab.json
	$(call install,book)
	@mkdir -p $(VENV)/share/jupyter/lab/settings && cp tools/jupyterlab.json $(VENV)/share/jupyter/lab/settings/overrides.json

$(VENV)/.teaching: $(VENV)/pins.txt $(VENV)/.book
	$(call install,teaching)

$(VENV)/.test: $(VENV)/pins.txt $(VENV)/.book
	$(call install,test$(comma)teaching$(comma)site)

$(VENV)/.site: $(VENV)/pins.txt $(VENV)/.teaching
	$(call install,site)

$(VENV)/.browser: $(VENV)/pins.txt $(VENV)/.teaching
	$(call install,browser)
