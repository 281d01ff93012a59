# Everything a developer types. The lock pins what was tested; pyproject.toml says what is allowed.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO ?= runs/demo
MINUTES ?= 30
CONFIG ?= configs/hippocampus.yaml
COMPARISON ?= runs/comparison
MODEL ?= runs/hippocampus-model
NNUNET_ENV ?= .venv-nnunet
# As many processes as cores, with a thread each; a file's tests share what they have trained.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: setup nnunet-env demo comparison model test test-slow lint types format check notebooks clean

setup: .venv/.installed  ## virtual environment with the locked dependencies

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

nnunet-env: $(NNUNET_ENV)/.installed  ## nnU-Net in an environment of its own, for rare nnunet

$(NNUNET_ENV)/.installed: requirements-nnunet.lock
	$(PYTHON) -m venv $(NNUNET_ENV)
	$(NNUNET_ENV)/bin/python -m pip install --quiet --requirement requirements-nnunet.lock
	touch $@

demo: setup  ## the whole method on phantoms: data, training, table, pictures
	rm -rf data/phantom $(DEMO)
	$(BIN)/rare phantom data/phantom --cases 40
	$(BIN)/rare fit --config configs/demo.yaml --data.root data/phantom --run_dir $(DEMO)
	$(BIN)/rare test --ckpt_path $(DEMO)/checkpoints/best.ckpt

comparison: setup  ## train and compare all methods for MINUTES each: make comparison ROOT=Task04_Hippocampus MINUTES=30
	$(BIN)/python benchmarks/comparison.py --root $(ROOT) --config $(CONFIG) --minutes $(MINUTES) --output $(COMPARISON) \
		--nnunet_environment $(NNUNET_ENV) $(ITERATIONS:%=--nnunet_iterations %)

model: setup  ## train the hippocampus model and put it into the package: make model ROOT=Task04_Hippocampus
	$(BIN)/rare fit --config configs/hippocampus.yaml --config configs/hippocampus_long.yaml --data.root $(ROOT) \
		--run_dir $(MODEL) --resume
	$(BIN)/python benchmarks/release_model.py --checkpoint $(MODEL)/checkpoints/last.ckpt --name hippocampus --root $(ROOT)

test: setup  ## the fast tests, with line coverage
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

test-slow: setup  ## the slow tests, and those on real data where RARE_DATA names its folder
	$(PYTEST) -m "slow or real_data"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: setup  ## run the notebooks
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

check: lint types test notebooks test-slow

clean:
	rm -rf .venv $(NNUNET_ENV) .mypy_cache .pytest_cache .ruff_cache .coverage data/phantom $(DEMO)
