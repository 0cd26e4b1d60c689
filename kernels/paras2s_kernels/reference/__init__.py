"""Plain-torch twins of the kernels, under the same names: the CPU path."""
