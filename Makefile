# `make run` serves, `make test` checks.

PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= googlenet
PHOTOS ?= ../shared/photos
HOST   ?= 127.0.0.1
PORT   ?= 8000
BIN    := $(VENV)/bin

.PHONY: floors run test test-all bench digits lenet5 image lock audit sbom tools packages clients proto check fuzz soak install clean

run: install ## Serve MODEL on HOST:PORT; with WEIGHTS=FILE, import that file first
	$(if $(WEIGHTS),$(BIN)/googlenet-service models import $(MODEL) $(WEIGHTS))
	$(BIN)/googlenet-service serve --model $(MODEL) --host $(HOST) --port $(PORT)

# Tests of a file share servers and models, so they run in one process; two use about 8 GiB.
JOBS   ?= 2
PYTEST  = $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test: check ## Every check, and all tests but the slow ones, in JOBS processes
	$(PYTEST) -m "not slow"

test-all: check ## Every check and every test, with coverage: what CI runs
	$(PYTEST) --cov --cov-report=term

bench: install ## Benchmark the service on PHOTOS, against its engine without a server
	$(BIN)/googlenet-service bench --model $(MODEL) $(PHOTOS)

DIGITS := build/digits

digits: $(VENV)/.dev ## Train the bundled model, in build/digits/store
	$(BIN)/python model_store/digits/images.py $(DIGITS)
	$(BIN)/googlenet-service train $(DIGITS)/train --name digits --model-store $(DIGITS)/store \
		--width 0.25 --epochs 25 --batch 16 --rate 0.004 --average 0.99 \
		--smallest 0.6 --distortion 0.2 --dropout 0.3 --mirror no \
		--description "handwritten digits, 0 to 9" \
		--licence "CC BY 4.0 (digits by E. Alpaydin and C. Kaynak, UCI)" \
		--notice "This is the bundled model: it knows handwritten digits and nothing else."
	$(BIN)/googlenet-service evaluate $(DIGITS)/test --model digits --model-store $(DIGITS)/store --plans single,ten

lenet5: $(VENV)/.dev ## Train LeNet-5 on the same digits, in build/digits/store
	$(BIN)/python model_store/digits/images.py $(DIGITS)
	$(BIN)/googlenet-service train $(DIGITS)/train --name lenet5 --model-store $(DIGITS)/store \
		--architecture lenet5 --epochs 30 --batch 16 --rate 0.01 --average 0.99 \
		--smallest 0.6 --distortion 0.2 --mirror no \
		--description "LeNet-5 on handwritten digits, 0 to 9" \
		--licence "CC BY 4.0 (digits by E. Alpaydin and C. Kaynak, UCI)"
	$(BIN)/googlenet-service evaluate $(DIGITS)/test --model lenet5 --model-store $(DIGITS)/store --plans single,ten

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DEVICE ?= cpu
IMAGE   = googlenet-service:$(VERSION)-$(DEVICE)
TORCH   = $(if $(filter cuda,$(DEVICE)),cu130,cpu)

image: ## The container image for DEVICE (cpu, cuda, or torch: cpu with torch), with MODEL's weights
	@docker info >/dev/null 2>&1 || { echo "make image needs a running Docker engine"; exit 1; }
	docker build --tag $(IMAGE) --build-arg DEVICE=$(DEVICE) --build-arg TORCH=$(TORCH) \
		--build-arg MODEL=$(MODEL) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg CREATED=$$(git log -1 --format=%cI) .

COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes \
	--allow-unsafe --strip-extras --no-annotate --no-emit-options

lock: $(VENV)/.dev ## Lock the image's packages to the versions tested here
	mkdir -p build
	$(BIN)/python deploy/pins.py 'googlenet-service[trace,grpc]' > build/requirements.in
	$(BIN)/python deploy/pins.py 'googlenet-service[trace,grpc,torch]' > build/all.in
	$(BIN)/python deploy/pins.py hatchling > build/build.in
	grep -E '^torch(vision)?==' build/all.in > deploy/torch.txt
	grep -vxF -f build/requirements.in -f deploy/torch.txt build/all.in > build/torch-requirements.in
	$(COMPILE) --output-file deploy/requirements.txt build/requirements.in
	$(COMPILE) --output-file deploy/torch-requirements.txt build/torch-requirements.in
	$(COMPILE) --output-file deploy/build.txt build/build.in

OSV ?= https://api.osv.dev/v1/query

# One list, without hashes: pip-audit reads only a part of several files, or of a mixed one.
audit: $(VENV)/.dev ## Ask OSV whether any locked version has a known vulnerability
	mkdir -p build
	sed -nE 's/^([a-z0-9-]+==[^ ]+).*/\1/p' deploy/requirements.txt deploy/torch.txt \
		deploy/torch-requirements.txt deploy/build.txt | sort -u > build/audit.in
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		--vulnerability-service osv --osv-url $(OSV) --requirement build/audit.in

SBOM  ?= build/sbom.json
comma := ,

sbom: $(VENV)/.dev ## SBOM of the CPU image with MODEL's weights: CycloneDX, in SBOM
	mkdir -p $(dir $(SBOM))
	PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml \
		deploy/requirements.txt \
		| $(BIN)/python deploy/sbom.py $(SBOM) $(subst $(comma), ,$(MODEL))

tools: packages clients ## Tools for tests (needs root): Prometheus, a browser, clients and their languages

TOOLS := promtool:prometheus chromium:chromium npm:npm javac:default-jdk-headless go:golang-go

packages: ## Debian packages of the tools that are missing
	@missing=$$(for tool in $(TOOLS); do which $${tool%:*} >/dev/null || echo $${tool#*:}; done); \
	[ -z "$$missing" ] || { apt-get update -q \
		&& apt-get install -qy --no-install-recommends fonts-dejavu-core $$missing; }

check: $(VENV)/.dev ## Format, lint, types, layers of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

CLIENTS := .venv-clients

clients: $(CLIENTS)/.made $(CLIENTS)/node_modules ## Triton's and KServe's clients, React, for tests

# In their own environment: they need older libraries than the service.
$(CLIENTS)/.made:
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --disable-pip-version-check --quiet 'tritonclient[http,grpc]>=2.60' 'kserve>=0.15'
	touch $@

$(CLIENTS)/node_modules: | $(CLIENTS)/.made
	npm install --loglevel=error --no-fund --no-audit --no-package-lock --prefix $(CLIENTS) react@18 react-dom@18

FLOORS := .venv-floors
# Without torch, whose build depends on the device.
TORCHS := torch|torchvision|triton|nvidia-(cu|nc|nv)|sympy|mpmath|networkx|jinja2|markupsafe|fsspec

floors: $(FLOORS)/.made ## The oldest versions that pyproject.toml allows, for tests

# Test tools come from the other environment.
$(FLOORS)/.made: pyproject.toml $(VENV)/.dev
	mkdir -p build
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra grpc --extra client \
		--no-header --no-annotate pyproject.toml | grep -vE '^($(TORCHS))' > build/floors.txt
	$(BIN)/python -m venv --clear $(FLOORS)
	$(BIN)/uv pip install --quiet --python $(FLOORS)/bin/python --no-deps --requirement build/floors.txt
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(FLOORS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth
	touch $@

proto: $(VENV)/.dev ## Compile the protobuf description of Open Inference
	$(BIN)/python -m grpc_tools.protoc -Iservice/api/grpc --descriptor_set_out=service/api/grpc/open_inference.binpb \
		service/api/grpc/open_inference.proto

SECONDS ?= 60

fuzz: $(VENV)/.dev ## Fuzz the image decoders for SECONDS, guided by coverage
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[fuzz]'
	$(BIN)/python tests/fuzz.py build/fuzz/corpus -max_total_time=$(SECONDS)

MINUTES ?= 30
SEED    ?= 0

soak: MODEL = digits
soak: $(VENV)/.dev ## Soak test: attacks and faults for MINUTES, or REQUESTS of all shapes under kills
	$(BIN)/python $(if $(REQUESTS),tests/soak_kills.py $(PHOTOS) --requests $(REQUESTS),tests/soak.py \
		$(PHOTOS) --minutes $(MINUTES) --model $(MODEL)) --seed $(SEED)

install: $(VENV)/.run

# torch and torchvision together: builds of different versions do not import each other.
$(VENV)/.run: pyproject.toml
	@echo 'Installing into $(VENV), once: a few minutes, PyTorch is large.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet torch torchvision
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

clean: ## Remove environments and caches, but no weights
	rm -rf $(VENV) $(CLIENTS) $(FLOORS) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .import_linter_cache
