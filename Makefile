# Two commands for users: `make demo` and `make test`. Everything else is for people who work on the library.
# Needs Python 3.10+, a C++20 compiler and make; the rest is installed into .venv. To use another environment that
# already has what constraints.txt lists: make test PY=/path/to/python
PYTHON ?= python3
PY ?= .venv/bin/python
NPROC := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
CUDA ?= OFF
SIMT ?= ON
OPS ?=
TESTS ?= python_tests
PYTEST_ARGS ?=

export OMP_NUM_THREADS ?= $(NPROC)
export PYTHONPATH := $(CURDIR)
export PATH := $(abspath $(dir $(PY))):$(PATH)

VENV := $(if $(filter .venv/bin/python,$(PY)),.venv/.installed)
NATIVE_SOURCES = $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

.PHONY: help demo test bench lint format build gpu-report gpu-check new-op selftest selftest-aarch64 wheel clean configure
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

.venv/.installed: constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is needed; try make PYTHON=python3.12' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -r constraints.txt
	touch $@

configure: $(VENV)
	@mkdir -p build
	cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIDKERNELS_INPLACE=ON -DVIDKERNELS_SIMT=$(SIMT) \
	  -DVIDKERNELS_CUDA=$(CUDA) -DVIDKERNELS_OPS="$(OPS)" -DPython_EXECUTABLE="$$($(PY) -c 'import sys; print(sys.executable)')" > build/configure.log 2>&1 \
	  || (cat build/configure.log; exit 1)

build: configure ## build the extension modules in place, with the SIMT emulator (CUDA=ON adds the CUDA kernels, OPS="a;b" builds only these)
	cmake --build build/dev -j $(NPROC)

demo: configure ## pretrain on a real clip, then compress it; pictures, checkpoint and .vkv file go to runs/demo
	cmake --build build/dev -j $(NPROC) --target _C
	$(PY) examples/pretrain_masked_video.py --out runs/demo
	$(PY) examples/compress_video.py --out runs/demo --end 2

test: build ## build, then run the tests (make test PYTEST_ARGS=--runslow for all of them)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -n auto --maxprocesses=8 $(TESTS) $(PYTEST_ARGS)

bench: build ## measure every op against what a user would write instead
	$(PY) benchmarks/run.py

lint: $(VENV) ## check style: ruff and clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	clang-format --dry-run -Werror $(NATIVE_SOURCES)

format: $(VENV) ## apply the style
	$(PY) -m ruff check --fix-only -q .
	$(PY) -m ruff format -q .
	clang-format -i $(NATIVE_SOURCES)

selftest: $(VENV) ## CPU kernels against plain loops, no Python inside, once per instruction set of this machine
	cmake -S csrc/selftest -B build/selftest -G Ninja > /dev/null
	cmake --build build/selftest -j $(NPROC)
	@case $$(uname -m) in x86_64|amd64) isas="v2 v3 v4";; *) isas=base;; esac; \
	for isa in $$isas; do VIDKERNELS_ISA=$$isa build/selftest/vk_selftest $$isa || exit 1; done

selftest-aarch64: $(VENV) ## the same, cross-compiled and run under qemu (Debian: g++-aarch64-linux-gnu qemu-user)
	cmake -S csrc/selftest -B build/selftest-aarch64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64.cmake > /dev/null
	cmake --build build/selftest-aarch64 -j $(NPROC)
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/selftest-aarch64/vk_selftest base

gpu-report: build ## registers, spills, memory traffic and conflicts of every CUDA kernel, found without a GPU
	$(PY) benchmarks/gpu_report.py

gpu-check: $(VENV) ## for owners of a GPU: build for this card, gpu tests, compute-sanitizer, benchmarks, one report file
	$(PY) benchmarks/gpu_check.py

new-op: $(VENV) ## start an op from the canonical one: make new-op NAME=merge_rows
	$(PY) tools/new_op.py $(NAME)

wheel: $(VENV) ## build sdist and wheel into dist/ (VIDKERNELS_CUDA=AUTO|ON|OFF) and show the wheel's platform tag
	$(PY) -m build -o dist .
	$(PY) -m auditwheel show dist/*.whl

clean: ## remove everything that was built (.venv stays)
	rm -rf build dist vidkernels/*.so
