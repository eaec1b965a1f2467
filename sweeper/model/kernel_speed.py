"""How fast llama.cpp's own kernels run on this machine's processor: a short benchmark without a model.

It runs in a worker process. It builds small graphs through ggml's interface, as llama.cpp does for a token: products of
a matrix and a vector for each type of weight, in the buffers that llama.cpp would choose (repacked or not), attention
over a filled cache, and many small steps. The figures say what the machine can do, and are never a measured inference.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sweeper.model.ggml_types import TYPE_BY_NAME
from sweeper.serving import Refused

# Most caches are smaller than this, so larger models read their weights as fast as a set of this size.
MOST_BYTES = 72 * 2**20
MATRIX_BYTES = 2 * 2**20  # at most, of one matrix
ROW = 1024  # of a small step
STEPS = 400  # small steps in a row, for the cost of one
HEAD, HEADS, KV_HEADS, DEPTH = 64, 16, 4, 1024  # of the attention
_ROUND_SECONDS, _MOST_ROUNDS, _LEAST_ROUNDS = 0.1, 100, 3
_BUSY_SECONDS = 0.4
_CPU_DEVICE = 0  # enum ggml_backend_dev_type
_FILL = 0x11  # any pattern that is no zero, infinity or subnormal number in all types


class _InitParams(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Kernels:
    """The CPU backend of ggml with a number of threads. Close it to free the backend."""

    def __init__(self, threads: int) -> None:
        from llama_cpp import _ggml

        self._ggml = _Typed(_ggml.libggml)
        self._device = self._ggml.pointer("ggml_backend_dev_by_type", _CPU_DEVICE)
        self._backend = self._ggml.pointer("ggml_backend_dev_init", self._device, None)
        if not self._backend:
            raise Refused("ggml has no backend for the processor")
        registry = self._ggml.pointer("ggml_backend_dev_backend_reg", self._device)
        set_threads = self._function(registry, b"ggml_backend_set_n_threads", None, ctypes.c_int)
        if set_threads is not None:
            set_threads(self._backend, threads)
        self._extra = self._function(registry, b"ggml_backend_dev_get_extra_bufts", ctypes.c_void_p)

    def close(self) -> None:
        """Free the backend."""
        self._ggml.nothing("ggml_backend_free", self._backend)

    def bytes_per_second(self, kind: str, row: int, total_bytes: int) -> float:
        """Weights that products of a matrix and a vector read in a second.

        ``kind`` is their type, ``row`` the length of a row and ``total_bytes`` the size of the whole set, which decides
        whether the weights stay in the processor's cache.
        """
        entry = TYPE_BY_NAME[kind]
        total_bytes = min(total_bytes, MOST_BYTES)
        # Repacked weights need a multiple of 16 rows.
        rows = max(1, round(min(MATRIX_BYTES, total_bytes / 2) / entry.row_bytes(row) / 64)) * 64
        matrix_bytes = entry.row_bytes(row * rows)
        count = max(1, round(total_bytes / matrix_bytes))
        with ExitStack() as held:
            weights = held.enter_context(self._context(count))
            matrices = [self._tensor(weights, entry.number, row, rows) for _ in range(count)]
            work = held.enter_context(self._context(4 * count))
            vector = self._tensor(work, 0, row, 1)
            products = [self._ggml.pointer("ggml_mul_mat", work, m, vector) for m in matrices]
            held.enter_context(self._placed(weights, matrices, (entry.number, row, rows), matrix_bytes))
            held.enter_context(self._buffer(work, None))
            return count * matrix_bytes / self._seconds(work, products)

    def step_seconds(self) -> float:
        """The seconds of one small step of a graph, such as a sum of two vectors, on all threads."""
        with ExitStack() as held:
            work = held.enter_context(self._context(2 * STEPS))
            vector = result = self._tensor(work, 0, ROW, 1)
            for _ in range(STEPS):
                result = self._ggml.pointer("ggml_add", work, result, vector)
            held.enter_context(self._buffer(work, None))
            return self._seconds(work, [result]) / STEPS

    def attention_per_second(self, cache_type: str) -> float:
        """Elements of K and V that attention reads in a second. Each head of the query reads them anew."""
        number = TYPE_BY_NAME[cache_type].number
        with ExitStack() as held:
            work = held.enter_context(self._context(64))
            query = self._tensor(work, 0, HEAD, 1, HEADS)
            results = []
            for _ in range(4):
                k, v = (self._tensor(work, number, HEAD, DEPTH, KV_HEADS) for _ in range(2))
                scale = (ctypes.c_float(HEAD**-0.5), ctypes.c_float(0.0), ctypes.c_float(0.0))
                results.append(self._ggml.pointer("ggml_flash_attn_ext", work, query, k, v, None, *scale))
            held.enter_context(self._buffer(work, None))
            return len(results) * 2 * HEAD * HEADS * DEPTH / self._seconds(work, results)

    # -- ggml

    @contextmanager
    def _context(self, tensors: int) -> Iterator[Any]:
        size = 2 * 2**20 + tensors * 1024
        init = self._ggml.library.ggml_init
        init.restype, init.argtypes = ctypes.c_void_p, [_InitParams]
        context = ctypes.c_void_p(init(_InitParams(size, None, True)))
        try:
            yield context
        finally:
            self._ggml.nothing("ggml_free", context)

    def _tensor(self, context: Any, kind: int, *sizes: int) -> Any:
        wanted = [ctypes.c_int64(size) for size in (*sizes, 1, 1)[:3]]
        return self._ggml.pointer("ggml_new_tensor_3d", context, kind, *wanted)

    @contextmanager
    def _placed(
        self, context: Any, matrices: Sequence[Any], form: tuple[int, int, int], size: int
    ) -> Iterator[None]:
        """Weights in the first buffer type whose products the processor supports, as llama.cpp places them."""
        where = next((extra for extra in self._extra_kinds() if self._supports(extra, form)), None)
        with self._buffer(context, where):
            if where is not None:  # setting the weights arranges them anew
                pattern = (ctypes.c_uint8 * size).from_buffer_copy(bytes([_FILL]) * size)
                for matrix in matrices:
                    whole = (ctypes.c_size_t(0), ctypes.c_size_t(size))
                    self._ggml.nothing("ggml_backend_tensor_set", matrix, pattern, *whole)
            yield

    def _extra_kinds(self) -> list[Any]:
        if self._extra is None:
            return []
        address = self._extra(self._device)
        kinds = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p)) if address else None
        found: list[Any] = []
        while kinds is not None and kinds[len(found)]:
            found.append(ctypes.c_void_p(kinds[len(found)]))
        return found

    def _supports(self, where: Any, form: tuple[int, int, int]) -> bool:
        function = self._ggml.library["ggml_backend_dev_supports_op"]
        function.restype = ctypes.c_bool
        # Tensors keep their buffer, so each question needs tensors of its own.
        with self._context(1) as weights, self._context(2) as work:
            matrix, vector = self._tensor(weights, *form), self._tensor(work, 0, form[1], 1)
            product = self._ggml.pointer("ggml_mul_mat", work, matrix, vector)
            with self._buffer(weights, where):
                return bool(function(self._device, product))

    @contextmanager
    def _buffer(self, context: Any, kind: Any) -> Iterator[None]:
        """Memory for all tensors of a context, of a buffer type (None: the processor's usual one), filled."""
        usual = kind is None
        kind = self._ggml.pointer("ggml_backend_dev_buffer_type", self._device) if usual else kind
        buffer = self._ggml.pointer("ggml_backend_alloc_ctx_tensors_from_buft", context, kind)
        if not buffer:
            raise Refused("there is too little memory for the benchmark of the kernels")
        if usual:
            self._ggml.nothing("ggml_backend_buffer_clear", buffer, ctypes.c_uint8(_FILL))
        try:
            yield
        finally:
            self._ggml.nothing("ggml_backend_buffer_free", buffer)

    def _seconds(self, context: Any, results: Sequence[Any]) -> float:
        """The shortest of several runs of the graph: other programs only ever lengthen a run."""
        nodes = ctypes.c_size_t(max(STEPS, len(results)) + 64)
        graph = self._ggml.pointer("ggml_new_graph_custom", context, nodes, ctypes.c_bool(False))
        for result in results:
            self._ggml.nothing("ggml_build_forward_expand", graph, result)
        compute = self._ggml.library.ggml_backend_graph_compute
        compute.restype, compute.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]
        best, spent = float("inf"), 0.0
        for number in range(_MOST_ROUNDS):
            began = time.perf_counter()
            if compute(self._backend, graph) != 0:
                raise Refused("ggml could not run the benchmark of the kernels")
            lasted = time.perf_counter() - began
            spent += lasted
            if number:  # the first run warms up
                best = min(best, lasted)
            # On a busy machine, threads that wait for each other may need a second for a round.
            enough = number >= _LEAST_ROUNDS and spent > _ROUND_SECONDS
            if enough or (number and spent > _BUSY_SECONDS):
                break
        return best

    def _function(self, registry: Any, name: bytes, result: Any, *more: Any) -> Callable[..., Any] | None:
        address = self._ggml.pointer("ggml_backend_reg_get_proc_address", registry, ctypes.c_char_p(name))
        if not address:
            return None
        return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *more)(address.value)


class _Typed:
    """Calls functions of ggml that take pointers and numbers. Every other number must carry its C type."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def pointer(self, name: str, *arguments: Any) -> Any:
        """The pointer that a function returns; None if it is null."""
        function = self.library[name]  # a new object each time, so that its types are ours
        function.restype = ctypes.c_void_p
        found = function(*arguments)
        return ctypes.c_void_p(found) if found else None

    def nothing(self, name: str, *arguments: Any) -> None:
        """Call a function that returns nothing."""
        function = self.library[name]
        function.restype = None
        function(*arguments)


def kernel_speeds(wanted: Sequence[tuple[str, int, int]], threads: int, cache_type: str) -> dict[str, Any]:
    """The speeds of this processor with ``threads`` threads.

    Args:
        wanted: type, length of a row and total bytes of the weights of a model.
        threads: as in a configuration.
        cache_type: the type of K and V.

    Returns:
        ``weights``: bytes/s for each of ``wanted``; ``step_seconds``; ``attention_per_second``: elements/s.
    """
    kernels = Kernels(threads)
    try:
        return {
            "weights": [kernels.bytes_per_second(*each) for each in wanted],
            "step_seconds": kernels.step_seconds(),
            "attention_per_second": kernels.attention_per_second(cache_type),
        }
    finally:
        kernels.close()
