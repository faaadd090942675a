# Included by `make llama`. llama-cpp-python always asks for llama.cpp's library for its programs, which Python does not use
# and which takes two thirds of the compiling. A variable goes before what is in CMake's cache
set(LLAMA_BUILD_COMMON OFF)
