# Each target sets up what it needs in $(VENV), on a machine that has Python 3.11 to 3.13 and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
# The versions that are known to work together; `make test-latest` installs without them.
CONSTRAINTS ?= --constraint constraints.txt
INSTALL = $(PIP) install --quiet $(CONSTRAINTS)
# torch is installed first, so that the packages that depend on it keep this build.
TORCH ?= torch==2.13.0
# TensorFlow and the packages that the benchmarks compare with.
PEERS ?= .venv-peers
BUILD = 'hatchling>=1.27,<2' 'editables>=0.5,<1' setuptools wheel

.PHONY: demo demo-train test test-latest gcs-emulator lint lock docs fuzz bench bench-peers clean

demo: $(VENV)/.base ## make small data sets, filter and tokenize them
	$(BIN)/oxe-curate demo --out demo

demo-train: $(VENV)/.dev ## the same, then train a tiny model on it, evaluate it and ask it for an action
	$(BIN)/oxe-curate demo --out demo --train

test: $(VENV)/.dev ## the whole test suite, with the locked versions
	$(BIN)/python -m pytest -n auto

test-latest: ## the whole test suite, with the newest versions that pyproject.toml allows
	rm -rf .venv-latest
	$(MAKE) test VENV=.venv-latest CONSTRAINTS=

gcs-emulator: ## an emulator of Google Cloud Storage in .venv-gcs, with which the tests of gs:// run
	$(PYTHON) -m venv .venv-gcs
	.venv-gcs/bin/python -m pip --disable-pip-version-check install --quiet 'gcp-storage-emulator==2026.7.19' 'google-crc32c==1.9.0'

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip reads the lock as constraints. CUDA's packages come with torch's own exact pins and stay out of it.
lock: $(VENV)/bin/python ## renew constraints.txt: the newest versions that pyproject.toml allows, for Python 3.11 to 3.13
	$(PIP) install --quiet uv
	printf '%s\n' $(BUILD) '$(TORCH)' > $(VENV)/lock.in
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml $(VENV)/lock.in > $(VENV)/lock.out
	{ echo '# Written by `make lock`.'; grep -vE '^(nvidia|cuda|triton)' $(VENV)/lock.out; } > constraints.txt

docs: $(VENV)/.dev ## renew the option tables of docs/commands/
	$(BIN)/python docs/commands.py

fuzz: $(VENV)/.dev ## damage every kind of input file for FUZZ_SECONDS (600), and count what happens
	$(BIN)/python -m tests.fuzz.run $(FUZZ)

# ONLY=REGEX chooses groups; OPENVLA= and DLIMP= are checkouts of openvla/openvla and moojink/dlimp_openvla.
bench: $(VENV)/.dev ## measure every row of benchmarks/results/README.md that needs no GPU (see benchmarks/README.md)
	$(BIN)/python -m benchmarks.run $(if $(wildcard $(PEERS)/.done),--peers $(PEERS)/bin/python) \
	  $(if $(OPENVLA),--openvla $(OPENVLA)) $(if $(DLIMP),--dlimp $(DLIMP)) $(if $(ONLY),--only '$(ONLY)') $(BENCH)

bench-peers: $(PEERS)/.done ## the environment of tf.data, TFDS and OpenVLA's loader, which `make bench` compares with

$(PEERS)/.done: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement benchmarks/peers.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-latest .venv-gcs .venv-peers demo benchmarks/data

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build: $(VENV)/bin/python constraints.txt
	$(INSTALL) $(BUILD)
	touch $@

$(VENV)/.base: $(VENV)/.build pyproject.toml
	$(INSTALL) --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.build pyproject.toml
	$(INSTALL) '$(TORCH)'
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@
