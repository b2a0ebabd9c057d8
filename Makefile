# Two commands for users: `make demo` and `make test`. Everything else is for people who work on the library.
PY ?= .venv/bin/python
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
CUDA ?= OFF
SIMT ?= ON

.PHONY: help build
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

build: ## build the extension modules in place, with the SIMT emulator (CUDA=ON adds the CUDA kernels)
	cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIDKERNELS_INPLACE=ON -DVIDKERNELS_SIMT=$(SIMT) \
	  -DVIDKERNELS_CUDA=$(CUDA) -DPython_EXECUTABLE=$(PY) -DCMAKE_MAKE_PROGRAM=$$($(PY) -c "import ninja, os; print(os.path.join(ninja.BIN_DIR, 'ninja'))") > /dev/null
	cmake --build build/dev -j 2
