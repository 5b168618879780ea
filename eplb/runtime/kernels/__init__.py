"""Triton kernels of the runtime and their launchers; Triton is imported on first launch."""
