# make sweep   a front in a few minutes on the built-in synthetic model, after installing all it needs
# make test    the tests
# make check   lint and types
# make server  llama-server, built from the source of the installed llama.cpp (4 minutes on 2 cores), for the tests that
#              need a real one; it comes to .venv/bin
#
# llama.cpp is compiled once, for this machine, and kept in pip's cache (2 to 5 minutes on 2 cores).
# BACKEND=cuda, hip, vulkan, metal, sycl or blas builds it for a GPU; CUDA=1 is short for BACKEND=cuda.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
BACKEND ?= $(if $(CUDA),cuda,cpu)
STAMP := $(VENV)/.installed-$(BACKEND)
ARGS ?=

BACKEND_FLAGS_cpu :=
BACKEND_FLAGS_cuda := -DGGML_CUDA=ON
BACKEND_FLAGS_hip := -DGGML_HIP=ON
BACKEND_FLAGS_vulkan := -DGGML_VULKAN=ON
BACKEND_FLAGS_metal := -DGGML_METAL=ON
BACKEND_FLAGS_sycl := -DGGML_SYCL=ON -DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx
BACKEND_FLAGS_blas := -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS

# What each backend needs beside a compiler: a command that fails where it is missing, and how to mend that. Without
# the check, compiling would fail after minutes. ggml's Vulkan code uses types of version 1.4 of the headers.
NEEDS_cpu := true
NEEDS_blas := true
NEEDS_cuda := command -v nvcc || test -x "$${CUDACXX:-/usr/local/cuda/bin/nvcc}" || test -x "$$CUDA_PATH/bin/nvcc"
NEEDS_hip := command -v hipconfig || test -x "$${ROCM_PATH:-/opt/rocm}/bin/hipconfig"
NEEDS_metal := test "$$(uname)" = Darwin
NEEDS_sycl := command -v icpx
NEEDS_vulkan := command -v glslc && printf '\#include <vulkan/vulkan_core.h>\n\#include <spirv/unified1/spirv.h>\n_Static_assert(VK_HEADER_VERSION_COMPLETE >= VK_MAKE_API_VERSION(0, 1, 4, 0), "");' | $(CC) $(CFLAGS) $(if $(VULKAN_SDK),-I$(VULKAN_SDK)/include) -fsyntax-only -x c -
MEND_cuda := install NVIDIA's CUDA toolkit and put nvcc on the PATH
MEND_hip := install AMD's ROCm and put hipconfig on the PATH
MEND_metal := Metal needs macOS, so choose another BACKEND
MEND_sycl := install Intel's oneAPI and run . /opt/intel/oneapi/setvars.sh
MEND_vulkan := install glslc, SPIR-V headers, and Vulkan headers of version 1.4 or later (those of Debian 12 are older; the Vulkan SDK of vulkan.lunarg.com has all three, and its setup-env.sh sets VULKAN_SDK)
MEND := choose one of cpu, cuda, hip, vulkan, metal, sycl and blas

# llava and llama.cpp's "common" are not used by Python and take half of the time to compile.
export CMAKE_ARGS := -DLLAVA_BUILD=OFF "-DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/cmake/llama_without_common.cmake" $(BACKEND_FLAGS_$(BACKEND))
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# tests/conftest.py has the files in their order, which pytest-xdist would change to the number of tests in each.
.PHONY: sweep test check format ui install server clean

sweep: install
	$(BIN)/sweeper sweep experiment=quick $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: install
	$(BIN)/python -m pip check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: install
	$(BIN)/sweeper ui

install: $(STAMP)

# The stamp is written last, so that an installation that was cut short is done again. The lock is whole, so pip
# resolves nothing (--no-deps): it would look beyond the lock for `coverage[toml]`, and fail on the day that a
# newer one is out. `make check` asks pip whether the lock is whole. Another BACKEND replaces llama-cpp-python alone, past the cache, which does not know what a wheel was built with.
$(STAMP): requirements.lock pyproject.toml
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "sweeper needs a C and C++ compiler: apt install build-essential"; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "sweeper needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 3; }
	@{ $(or $(NEEDS_$(BACKEND)),false); } >/dev/null 2>&1 || { echo "cannot build llama.cpp with BACKEND=$(BACKEND): $(or $(MEND_$(BACKEND)),$(MEND))"; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what sweeper needs; llama.cpp is compiled for this machine, which takes 2 to 5 minutes the first time"
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
ifneq ($(BACKEND),cpu)
	grep -A 2 '^llama-cpp-python==' requirements.lock > $(VENV)/llama.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-cache-dir --force-reinstall -r $(VENV)/llama.lock
endif
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.installed-*
	touch $@

# The programs link to the libraries of the installed llama-cpp-python by a relative path, so every clone can use a copy
# that was built once. CMake refuses a folder that was built from a CMakeLists.txt elsewhere, so that file is copied, too.
LLAMA := $(shell grep '^llama-cpp-python==' requirements.lock | cut -d' ' -f1 | sed 's/==/-/')
SERVER_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sweeper/$(LLAMA)-$(BACKEND)-server
SERVER_PROGRAMS := llama-server llama-fit-params llama-bench llama-perplexity

server: $(BIN)/llama-server

$(BIN)/llama-server: $(STAMP) cmake/server/CMakeLists.txt cmake/server/requirements.lock
	command -v cmake >/dev/null || $(BIN)/python -m pip install --quiet --require-hashes -r cmake/server/requirements.lock
	@echo "building llama-server from the source of $(LLAMA), which takes 4 minutes the first time"
	mkdir -p $(SERVER_CACHE)/source $(SERVER_CACHE)/cmake
	cp cmake/server/CMakeLists.txt $(SERVER_CACHE)/cmake/
	grep -A 2 '^llama-cpp-python==' requirements.lock > $(SERVER_CACHE)/llama.lock
	test -d $(SERVER_CACHE)/source/vendor || { $(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python \
	  --require-hashes -r $(SERVER_CACHE)/llama.lock -d $(SERVER_CACHE) && \
	  tar -xzf $(SERVER_CACHE)/llama_cpp_python-*.tar.gz -C $(SERVER_CACHE)/source --strip-components 1; }
	lib=$$($(BIN)/python -c 'import llama_cpp, os; print(os.path.join(os.path.dirname(llama_cpp.__file__), "lib"))') && \
	{ PATH="$(CURDIR)/$(BIN):$$PATH" && export PATH && cmake -S $(SERVER_CACHE)/cmake -B $(SERVER_CACHE)/programs -DCMAKE_BUILD_TYPE=Release -DLLAMA_VERSION=$(LLAMA) -DLLAMA_LIB="$$lib" \
	  -DLLAMA_RPATH='$$ORIGIN'"/../$${lib#*/$(VENV)/}" -DLLAMA_SOURCE=$(SERVER_CACHE)/source/vendor/llama.cpp && \
	cmake --build $(SERVER_CACHE)/programs --parallel $(JOBS); } >$(SERVER_CACHE)/log 2>&1 || { tail -20 $(SERVER_CACHE)/log; exit 3; }
	cp $(addprefix $(SERVER_CACHE)/programs/bin/,$(SERVER_PROGRAMS)) $(BIN)/
	$(BIN)/llama-server --version

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
