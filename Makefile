# The first call creates .venv and builds the kernels; later calls reuse both.
#   PYTHON=python3.12   another interpreter            ARGS="--port 9000"   arguments to pass on
#   TORCH=cpu, TORCH=cuda   the build of torch, which else is the machine's: see packaging/torch_build.py

MAKEFLAGS += --no-builtin-rules
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ARGS ?=
# Of pyproject.toml: all that are for users, but TensorRT, which is of GPUs.
USER_EXTRAS := onnx,openvino,dashboard,client,otel,grpc,ray,models,steps,analysis
GPU_EXTRAS ?= onnx,dashboard,test
# Processes of pytest-xdist: more than the cores of a small machine, since many tests wait, and no more on a large one,
# since many want the same core.
JOBS ?= 4
PARALLEL := --numprocesses $(JOBS) --dist worksteal
PY := $(VENV)/bin/python
COMPILED := $(filter-out clover/_native/%,$(wildcard clover/*.pxd clover/*/*.pxd clover/*/*/*.pxd))
INPUTS := setup.py pyproject.toml $(wildcard csrc/*.pyx csrc/*.pxd csrc/*.h csrc/nvml_emulator/*.[ch] clover/_native/*.pxd) \
	$(COMPILED) $(COMPILED:.pxd=.py)

.PHONY: serve test test-quick test-deep test-cluster test-gpu test-checked test-wheel sanitize fuzz lint bench \
	bench-peers bench-kernels build release docs sbom audit reproducible train-fashion soak house clean

serve: setup-serve
	$(PY) -m clover.serve fashion $(ARGS)

# Compiled once, not in each of the hundreds of processes that tests start, whatever this says outside.
test test-quick test-deep test-cluster test-gpu test-checked sanitize: export PYTHONDONTWRITEBYTECODE :=

# All tests; with ARGS, pytest gets these alone: make test ARGS="tests/native -x"
test: setup-test
	$(PY) -m pytest $(or $(ARGS),$(PARALLEL))

# Those that start no server and take no more than a second or two each, and of generated examples a quarter: the inner
# loop.  They compute more than they wait: a process a core, each of which collects all tests first.
test-quick: setup-test
	$(PY) -m pytest $(PARALLEL) --numprocesses auto --maxprocesses $(JOBS) -m "not slow" --hypothesis-profile quick $(or $(ARGS),tests/unit tests/native)

# Generated examples by the hundreds or thousands, not the same ones each time, of tests that plan, simulate and read
# clusters: a quarter of an hour or more.  With ARGS, of others: make test-deep ARGS=tests/unit/http
test-deep: setup-test
	$(PY) -m pytest --hypothesis-profile deep --timeout 3600 $(or $(ARGS),$(PARALLEL) tests/unit/cluster/planning tests/unit/cluster)

# A whole cluster on this machine: Ray's processes, HAProxy (Debian: haproxy) and three servers, which takes minutes.
test-cluster: setup-cluster
	TEST_CLUSTER=1 $(PY) -m pytest tests/e2e/test_cluster.py $(ARGS)

# What only a machine with an NVIDIA GPU can show; each test says what it needs if that is missing.  With TensorRT, whose
# libraries come from NVIDIA's own package index: make test-gpu GPU_EXTRAS=onnx,dashboard,test,tensorrt
test-gpu: setup-gpu
	$(PY) -m pytest tests/gpu $(ARGS)

# The kernels' own tests against a build with bounds checks and assertions, which lies beside the release build; and
# the tests of compiled modules through their source.
test-checked: setup-dev
	CLOVER_BUILD=checked $(PY) setup.py --quiet build_ext --build-lib build/checked
	CLOVER_NATIVE=build/checked/clover/_native $(PY) -m pytest tests/native $(ARGS)
	CLOVER_SOURCE=1 $(PY) -m pytest tests/unit $(ARGS)

# Kernels, compiled modules and the emulated NVML with the address and undefined-behaviour sanitizers, in a build aside
# (which takes long), and the ring under ThreadSanitizer.  Python's own allocator would hide what is read behind
# an object's end.
SANITIZED := build/sanitized
sanitize: setup-dev
	CLOVER_BUILD=checked CLOVER_SANITIZE=1 $(PY) setup.py --quiet build_ext --build-lib $(SANITIZED)
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		CLOVER_COMPILED=$(SANITIZED) CLOVER_NATIVE=$(SANITIZED)/clover/_native \
		$(PY) -m pytest -p no:faulthandler --hypothesis-profile quick -m "not alone" $(or $(ARGS),$(SANITIZE_TESTS))
	CLOVER_TSAN_BATCHES=50000 $(PY) -m pytest -s tests/tsan
SANITIZE_TESTS := tests/native $(wildcard tests/unit/emulation/test_nvml_emulator*.py) tests/unit/http tests/unit/runtime \
	tests/unit/worker tests/unit/accounting tests/conformance tests/fuzz/test_targets.py

# Each target for so long, guided by branches: make fuzz ARGS="front_end oip --seconds 1800"
fuzz: setup-dev
	$(PY) -m tests.fuzz $(ARGS)

lint: setup-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# The data plane beside reference servers of the same wire, three minutes; the peers are installed first, each in an
# environment of its own (over a gigabyte in all), and with five rounds of three seconds take half an hour more.
bench: setup-test
	$(PY) -m bench.wire --rounds 2 --seconds 2 $(ARGS)

bench-peers: setup-test
	$(PY) -m bench.wire --peers granian_rsgi granian_asgi uvicorn fastapi litserve mlserver bentoml ray pytriton $(ARGS)

bench-kernels: setup-test setup-dev
	$(PY) -m bench.kernels $(ARGS)

# The time of the last commit is the time of every file in the wheel, so that the same tree gives the same bytes.
build release reproducible: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)

build: setup-dev
	$(PY) -m build --outdir dist .

# All that a version publishes, in dist/: wheels, sdist, bill of materials, OpenAPI, dashboards, notes, checksums.
release: sbom setup-dev
	$(PY) packaging/release.py

# The wheel in bare environments below .venv-wheel: each family that brings its weights, served and asked as its card shows.
test-wheel: build
	$(PY) -m tests.wheel $(ARGS)

# Builds the wheel twice, in two folders, and compares the bytes; takes as long as two builds.
reproducible: setup-dev
	$(PY) packaging/reproducible.py $(ARGS)

# The documents as a site in dist/site, made without network; a warning or a dead link is an error.
docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --config-file packaging/mkdocs.yml $(ARGS)

# dist/clover.cdx.json (CycloneDX) and THIRD-PARTY-NOTICES.md, from what is installed, and so with all that users may need.
sbom: setup-users
	$(PY) packaging/sbom.py $(ARGS)

# Known vulnerabilities of what is installed, by PyPI's advisories (ARGS="-s osv" asks osv.dev), beside the bill of
# materials.  A package that could not be asked about is an error too.
audit: sbom setup-dev
	$(PY) -m pip_audit --strict --skip-editable --progress-spinner off $(ARGS) || { code=$$?; \
		echo "make audit: NOT PASSED: a package above is vulnerable, or its advisories could not be read (without network, or from" >&2; \
		echo "a mirror that has none, 'not found on PyPI' is said of the first one and nothing is checked)" >&2; exit $$code; }

train-fashion: setup-serve
	$(PY) -m clover.models.fashion.train $(ARGS)

# Load with every fault there is, a quarter of an hour or as long as ARGS="--minutes 240" says; build/soak gets the figures.
soak: setup-test
	$(PY) -m bench.soak $(ARGS)

# How large Clover is, in lines, modules, settings and pages; it fails nothing.
house: setup-serve
	$(PY) packaging/house.py $(ARGS)

clean:
	rm -rf build dist *.egg-info clover/_native/*.so $(COMPILED:.pxd=.*.so) csrc/*.c .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	rm -f $(VENV)/.built $(VENV)/.serve $(VENV)/.test $(VENV)/.gpu $(VENV)/.dev $(VENV)/.users $(VENV)/.cluster

# --- set-up: one stamp for what is compiled, one for each set of packages; both at once -----------------------------------

# Compiling takes the cores, and packages mostly the network.
setup-%: | $(PY)
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.built $(VENV)/.$*

$(PY):
	@echo "set-up: making $(VENV) with $(PYTHON) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.built: $(INPUTS) | $(PY)
	@./setup.sh $(VENV) clover
	@touch $@

$(VENV)/.serve: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages onnx,dashboard,client
	@touch $@

$(VENV)/.test: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages openvino,dashboard,analysis,test
	@touch $@ $(VENV)/.serve

$(VENV)/.gpu: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages $(GPU_EXTRAS)
	@touch $@ $(VENV)/.serve

$(VENV)/.cluster: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages onnx,dashboard,test,ray
	@touch $@ $(VENV)/.serve

$(VENV)/.dev: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages onnx,dashboard,test,dev
	@touch $@ $(VENV)/.serve

$(VENV)/.users: pyproject.toml | $(PY)
	@./setup.sh $(VENV) packages $(USER_EXTRAS)
	@touch $@ $(VENV)/.serve
