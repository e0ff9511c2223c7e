# Two commands that need nothing but Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# torch comes first and by version, so that no other package pulls in another build of it.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(BIN)/python examples/quickstart_data.py --out out/quickstart-data
	$(BIN)/st-distill run examples/quickstart.yaml --resume
	@echo
	@echo 'Use it, in $(BIN)/python:'
	@echo '  from sentence_transformers import SentenceTransformer'
	@echo '  model = SentenceTransformer("out/jasper")'
	@echo '  model.encode(["a small red circle"], truncate_dim=128)'

test: $(VENV)/ready lint
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
