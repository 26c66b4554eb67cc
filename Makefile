# Every target does its own set-up: a bare Python is enough.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := _build/.built
RELEASE := _build/release
PEERS := $(VENV)-peers
CHAPTERS := $(wildcard chapters/*.ipynb)
# what the pages are made of, and of these what changes every page
TEXTS := $(CHAPTERS) $(wildcard chapters/*.md chapters/*/*.md dpm/*.py dpm/*/*.py data/*/*) references.bib
FRAME := _config.yml _toc.yml $(wildcard tools/*.py _static/*)

# One thread a process: two run side by side, and sums come out in one order on every machine.
# Tests and chapters in one run, so that neither process waits for the other before the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout 600

.PHONY: help book test test-units test-fast elsewhere lint run twice bench peers links release clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / — /'

book: $(BUILT)  ## build the book and say where to open it
	@echo "Open file://$(CURDIR)/_build/html/index.html"

# A page that has warned must be read again, or the next build would pass over it.
$(BUILT): $(READY) $(TEXTS) $(FRAME)
	$(BIN)/jupyter-book build . $(if $(filter $(FRAME),$?),--all) -W -n --keep-going -q || { rm -rf _build/.doctrees; exit 1; }
	touch $@

test: lint book  ## check everything: style and types, units, every number in the book, the pages
	$(PYTEST) tests chapters $(NBVAL) -rs

test-units: $(READY)  ## check the module alone, without the book
	$(PYTEST) tests -rs -m "not book"

test-fast: $(READY)  ## check the module alone, without the tests that take seconds
	$(PYTEST) tests -m "not book and not slow"

elsewhere:  ## the fast tests for another user, with no HOME, in a strange folder that cannot be written, in random order
	tools/elsewhere.sh

lint: $(READY)  ## style and types, the workflows, the citation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github

run: $(READY)  ## re-execute the chapters in place, on the GPU when there is one, say which lines moved, and index the equations
	OMP_NUM_THREADS=1 $(BIN)/python tools/execute.py $(CHAPTERS)
	$(BIN)/python tools/equations.py

twice: $(READY)  ## run every cell of every chapter twice in a row, and write nothing
	OMP_NUM_THREADS=1 $(BIN)/python tools/execute.py --twice $(CHAPTERS)

# glibc would hand large blocks back and fetch them anew, at whim, which costs more time than what is measured.
bench: export MALLOC_MMAP_THRESHOLD_ := 33554432
bench: export MALLOC_TRIM_THRESHOLD_ := 1073741824
bench: $(READY)  ## time dpm beside a bare PyTorch loop
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

# in an environment of its own, since the other libraries bring many packages along
peers:  ## train dpm, smalldiffusion and diffusers for a minute each, and compare K on the same data
	test -d $(PEERS) || python3 -m venv $(PEERS)
	$(PEERS)/bin/pip install -q -e '.[peers]'
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers.py --seconds 60

links: $(READY)  ## ask every address that the pages name
	$(BIN)/jupyter-book build . --builder linkcheck

release: $(READY) $(BUILT)  ## the book for reading offline, its checksum, and the wheel
	rm -rf $(RELEASE)
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w $(RELEASE) .
	cd _build/html && "$(CURDIR)/$(BIN)/python" -m zipfile -c "$(CURDIR)/$(RELEASE)/book.zip" *
	cd $(RELEASE) && sha256sum * > SHA256SUMS

clean:  ## remove what was built
	rm -rf _build build dist

# VERSIONS=highest or lowest-direct: the newest or the oldest packages that pyproject.toml allows, in place of the pinned
$(READY): requirements.txt constraints.txt pyproject.toml
	test -d $(VENV) || python3 -m venv $(VENV)
ifdef VERSIONS
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python --resolution $(VERSIONS) -e '.[book,test]'
else
	$(BIN)/pip install -q -r requirements.txt -c constraints.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e . -c constraints.txt
endif
	touch $@
