# Two commands that need nothing but Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# torch comes first and by version, so that no other package pulls in another build of it.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 600

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

# Builds of torch for the oldest and the newest versions; one for the CPU alone spares gigabytes of CUDA.
LOWEST_TORCH ?= torch==2.7.0
NEWEST_TORCH ?= torch
LOWEST := "sentence-transformers[train]==6.0.0" "transformers==5.0.0"
NEWEST := --upgrade "sentence-transformers[train]" transformers
# What a version of a library can break: its modules, the trainer, saved files.
COMPATIBILITY_TESTS ?= tests/compatibility tests/test_functional.py tests/test_losses.py tests/store \
	tests/test_exporting.py tests/modules tests/recipe/test_runner.py
# For each module the tests of it, and how many of its mutants are tried, where not all are.
STORE_TESTS := store,test_verify.py,test_options.py
MUTATED := functional.py:test_functional.py: hinges.py:test_functional.py:60 losses.py:test_losses.py: batch.py:test_losses.py: \
	$(foreach part,build changed damage format labels processes store shards texts,store/$(part).py:$(STORE_TESTS):40)

# Tests run in several processes with one thread of torch each, which are faster than threads.
PARALLEL := --numprocesses=logical --maxprocesses=8
test faults coverage: export OMP_NUM_THREADS = 1

.PHONY: demo test lint docs faults fuzz reliability coverage mutation soak compatibility audit clean

demo: $(VENV)/ready
	$(BIN)/python examples/quickstart_data.py --out out/quickstart-data
	$(BIN)/st-distill run examples/quickstart.yaml --resume
	@echo
	@echo 'Use it, in $(BIN)/python:'
	@echo '  from sentence_transformers import SentenceTransformer'
	@echo '  model = SentenceTransformer("out/jasper")'
	@echo '  model.encode(["a small red circle"], truncate_dim=128)'
	@echo
	$(BIN)/st-distill report out/jasper-run --no-speed

test: $(VENV)/ready lint docs
	$(BIN)/python -m pytest $(PARALLEL) --dist=loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in out/docs: every page is read anew, because what was read before does not warn again.
docs: $(VENV)/ready
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs out/docs

# Every fault at every place: kills, full disks, signals, teachers that fail.
faults: $(VENV)/ready
	FAULTS=all $(BIN)/python -m pytest $(PARALLEL) tests/faults tests/test_verify.py --junitxml=out/reliability/faults.xml

# Bad inputs for as long as FUZZ_SECONDS says: as many again as there is time for by hypothesis, and four coverage-guided runs.
fuzz: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo,fuzz]"
	end=$$(( $$(date +%s) + $(FUZZ_SECONDS) )); while [ $$(date +%s) -lt $$end ]; do \
		FUZZ_PROFILE=fuzz $(BIN)/python -m pytest --quiet tests/inputs --junitxml=out/reliability/inputs-$$(date +%s).xml \
			|| exit 1; done
	for target in recipe description texts vectors; do \
		$(BIN)/python tests/inputs/coverage_guided.py $$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 \
			-rss_limit_mb=4096 > out/reliability/coverage_guided-$$target.log 2>&1 \
			|| { tail -n 20 out/reliability/coverage_guided-$$target.log; exit 1; }; done

# The table of what `make faults` and `make fuzz` have tried here.
reliability: $(VENV)/ready
	$(BIN)/python tests/faults/table.py out/reliability/*

# The whole suite under coverage, the processes that it starts included.
coverage: $(VENV)/ready
	rm -rf out/coverage && mkdir -p out/coverage
	$(BIN)/python -m coverage run -m pytest $(PARALLEL) --dist=loadfile
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# Whether the tests notice small changes of the mathematics, the losses and the store; what they do not notice is printed.
mutation: $(VENV)/ready
	for given in $(MUTATED); do \
		file=$${given%%:*}; rest=$${given#*:}; names=$$(echo "$${rest%%:*}" | tr , ' '); sample=$${rest#*:}; \
		$(BIN)/python tests/mutation.py st_distill/$$file $$(for name in $$names; do echo tests/$$name; done) \
			$${sample:+--sample $$sample} || exit 1; done

# 20,000 steps and a store of a million rows: flat memory, no open files, no threads left.
soak: $(VENV)/ready
	$(BIN)/python benchmarks/soak.py

# The oldest and the newest versions of sentence-transformers, transformers and torch that setup.cfg allows.
compatibility:
	$(PYTHON) -m venv .venv-lowest && .venv-lowest/bin/python -m pip install --quiet $(LOWEST_TORCH)
	.venv-lowest/bin/python -m pip install --quiet $(LOWEST) --editable ".[dev]"
	.venv-lowest/bin/python -m pytest -W default $(COMPATIBILITY_TESTS)
	$(PYTHON) -m venv .venv-newest && .venv-newest/bin/python -m pip install --quiet --upgrade $(NEWEST_TORCH)
	.venv-newest/bin/python -m pip install --quiet $(NEWEST) --editable ".[dev]"
	.venv-newest/bin/python -m pytest -W default $(COMPATIBILITY_TESTS)

# Known holes in what is installed; asks the package index, and fails where that does not answer, so it is no part of the tests. Licences are (tests/test_licences.py).
audit: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	mkdir -p out && $(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > out/installed.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement out/installed.txt

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest out build dist *.egg-info
