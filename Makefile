# Two commands do everything: `make run` serves, `make test` checks.

PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= googlenet
PHOTOS ?= ../shared/photos
HOST   ?= 127.0.0.1
PORT   ?= 8000
BIN    := $(VENV)/bin

.PHONY: run test bench digits image constraints tools check pytest install clean

run: install ## Serve MODEL on HOST:PORT; with WEIGHTS=FILE, import that file first
	$(if $(WEIGHTS),$(BIN)/googlenet-service models import $(MODEL) $(WEIGHTS))
	$(BIN)/googlenet-service serve --model $(MODEL) --host $(HOST) --port $(PORT)

test: check pytest ## Every check and every test

bench: install ## Measure the service on PHOTOS, beside what its engine does without one
	$(BIN)/googlenet-service bench --model $(MODEL) $(PHOTOS)

DIGITS := build/digits

digits: $(VENV)/.dev ## Make the bundled model anew, in build/digits/store
	$(BIN)/python model_store/digits/pictures.py $(DIGITS)
	$(BIN)/googlenet-service train $(DIGITS)/train --name digits --store $(DIGITS)/store \
		--width 0.25 --epochs 25 --batch 16 --rate 0.004 --average 0.99 \
		--smallest 0.6 --distortion 0.2 --dropout 0.3 --mirror no \
		--description "handwritten digits, 0 to 9" \
		--licence "CC BY 4.0 (digits by E. Alpaydin and C. Kaynak, UCI)" \
		--notice "This is the bundled model: it knows handwritten digits and nothing else."
	$(BIN)/googlenet-service evaluate $(DIGITS)/test --model digits --store $(DIGITS)/store --plans single,ten

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DEVICE ?= cpu
IMAGE   = googlenet-service:$(VERSION)-$(DEVICE)
TORCH   = $(if $(filter cuda,$(DEVICE)),cu130,$(DEVICE))

image: ## The container image for DEVICE (cpu or cuda), with MODEL's weights in it; none if empty
	@docker info >/dev/null 2>&1 || { echo "make image needs Docker, and its engine running"; exit 1; }
	docker build --tag $(IMAGE) --build-arg TORCH=$(TORCH) --build-arg MODEL=$(MODEL) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg CREATED=$$(git log -1 --format=%cI) .

constraints: $(VENV)/.dev ## Pin what the image gets to what is tested here
	$(BIN)/pip freeze --exclude-editable > deploy/constraints.txt

tools: ## What tests use besides Python's packages (needs root): Prometheus
	command -v promtool >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends prometheus; }

check: $(VENV)/.dev ## Format, lint, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

pytest: $(VENV)/.dev ## The tests, with coverage
	$(BIN)/pytest --cov --cov-report=term

install: $(VENV)/.run

# torch and torchvision go in together: builds of different days do not import each other.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet torch torchvision
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

clean: ## Remove what was installed and cached; weights stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .import_linter_cache
