"""The parts of tools/build-kernels."""
