"""Triton kernels and their launches, one file a kernel; importing a file of this package imports triton."""
