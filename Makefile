# Every target does its own set-up: a bare Python is enough.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHAPTERS := $(wildcard chapters/*.ipynb)

# One thread a kernel: two chapters run side by side, and sums come out in one order on every machine.
NBVAL := OMP_NUM_THREADS=1 $(BIN)/pytest chapters --nbval --nbval-current-env --nbval-cell-timeout 600

.PHONY: help book test lint run bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / — /'

book: $(READY)  ## build the book and say where to open it
	$(BIN)/jupyter-book build . --all -W -n --keep-going -q
	@echo "Open file://$(CURDIR)/_build/html/index.html"

test: lint book  ## check everything: style and types, units, every number in the book, the pages
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n 2 --dist loadfile -rs
	$(NBVAL) -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

run: $(READY)  ## re-execute the chapters in place, on the GPU when there is one, and make the equation index
	OMP_NUM_THREADS=1 $(BIN)/python tools/execute.py $(CHAPTERS)
	$(BIN)/python tools/equations.py

# glibc would hand large blocks back and fetch them anew, at whim, which costs more time than what is measured.
bench: export MALLOC_MMAP_THRESHOLD_ := 33554432
bench: export MALLOC_TRIM_THRESHOLD_ := 1073741824
bench: $(READY)  ## time dpm beside a bare PyTorch loop
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

clean:  ## remove what was built
	rm -rf _build build dist

$(READY): requirements.txt constraints.txt pyproject.toml
	test -d $(VENV) || python3 -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt -c constraints.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e . -c constraints.txt
	touch $@
