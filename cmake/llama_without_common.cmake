# Included by CMake right after llama.cpp's project() call. llama-cpp-python forces LLAMA_BUILD_COMMON on, but
# does not use that library, and it is half of the compile time. A normal variable goes before a cached one.
set(LLAMA_BUILD_COMMON OFF)
