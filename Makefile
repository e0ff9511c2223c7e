# Two commands that need nothing but Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# torch comes first and by version, so that no other package pulls in another build of it.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 600

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test lint docs faults fuzz clean

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
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in out/docs: every page is read anew, because what was read before does not warn again.
docs: $(VENV)/ready
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs out/docs

# Every fault at every place: kills, full disks, signals, teachers that fail.
faults: $(VENV)/ready
	FAULTS=all $(BIN)/python -m pytest tests/faults tests/test_verify.py

# Bad inputs for as long as FUZZ_SECONDS says: as many again as there is time for by hypothesis, and three coverage-guided runs.
fuzz: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo,fuzz]"
	end=$$(( $$(date +%s) + $(FUZZ_SECONDS) )); while [ $$(date +%s) -lt $$end ]; do \
		FUZZ_PROFILE=fuzz $(BIN)/python -m pytest --quiet tests/inputs || exit 1; done
	for target in recipe description texts; do \
		$(BIN)/python tests/inputs/coverage_guided.py $$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 \
			-rss_limit_mb=4096 || exit 1; done

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
