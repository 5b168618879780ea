"""Triton kernels of the runtime and their launchers. Triton is imported when a kernel is first launched."""
