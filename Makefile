# Two commands, each from a fresh clone: `make demo` and `make test`. All they need is Python 3.11 and make.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY  := $(VENV)/.ready

.PHONY: help demo model test lint unit soak mutation docs setup clean

# Label maps of the PAM50 template, and where `make model` works; it goes on where it was.
PAM50  ?= PAM50
MODEL  ?= ready_output

help:
	@echo "make demo   phantom -> train -> predict -> compare with vanilla nnU-Net, on a CPU in minutes; writes demo_output/"
	@echo "make model  the ready model: draw images from PAM50=folder of its label maps, train for hours on a CPU; writes ready_output/"
	@echo "make test   lint, types and all tests"
	@echo "make lint   ruff and mypy only"
	@echo "make soak   the long tests that make test leaves out"
	@echo "make mutation  seed faults in a copy of the package and count those that the tests catch; writes mutation_output/"
	@echo "make docs   the pages of docs/ and the Python API as a site; writes site/"
	@echo "make setup  the environment in $(VENV) only (the others do it by themselves)"
	@echo "make clean  remove $(VENV), demo_output/, mutation_output/, site/ and caches"

demo: $(READY)
	$(BIN)/nnunet-softseg demo -o demo_output

model: $(READY)
	cd benchmarks && ../$(BIN)/python ready_model.py -o ../$(MODEL) --pam50 $(abspath $(PAM50))

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file of tests in each of two processes, the long ones first.
unit: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What make test leaves out, then its laws with ten times as many examples.
soak: $(READY)
	$(BIN)/python -m pytest -m soak
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -m "hypothesis and not soak" -n 2

# Minutes to an hour; it goes on where it was. Others: make mutation FAULTS="--seed 7 -n 50 --rooms labels"
FAULTS ?= --seed 1
mutation: $(READY)
	$(BIN)/python benchmarks/mutation.py -o mutation_output $(FAULTS)

# tests/test_docs.py builds it, too. The variable silences a note on other generators.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)
	$(BIN)/mkdocs build --strict

setup: $(READY)

# Again when the dependencies change, and when the hook does: an editable install copies it.
$(READY): pyproject.toml $(wildcard constraints/*) $(wildcard hook/*)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no $(PYTHON) here: install Python 3.11, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Is the CPU build of PyTorch on offer?"
	@if $(BIN)/python -m pip install -q --dry-run --no-deps -c constraints/cpu.txt torch torchvision >$(VENV)/torch.log 2>&1; then \
	  cp constraints/cpu.txt $(VENV)/constraints.txt; echo "It is."; \
	else \
	  sed 's/+cpu//' constraints/cpu.txt > $(VENV)/constraints.txt; \
	  echo "It is not: taking the plain release of the same version, which may bring CUDA libraries along. To avoid them,"; \
	  echo "name the index of PyTorch's CPU builds in PIP_EXTRA_INDEX_URL."; \
	fi
	@echo "Installing into $(VENV): a minute or two."
	@$(BIN)/python -m pip install -qq -c $(VENV)/constraints.txt -e '.[test,cpu]'
	@$(BIN)/python -c "import torchvision" >$(VENV)/torchvision.log 2>&1 || { \
	  echo "torchvision is of another build than PyTorch: declaring its operators, so that it imports."; \
	  $(BIN)/python constraints/torchvision_without_operators.py; }
	@touch $@

clean:
	rm -rf $(VENV) demo_output mutation_output site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
