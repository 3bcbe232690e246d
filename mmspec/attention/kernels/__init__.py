"""Triton kernels of tree attention. Only `triton_tree` imports them, once it has a call to make."""
