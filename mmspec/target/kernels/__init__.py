"""Triton kernels of a decoder block, around its attention. Import only where triton is installed.

Each rounds where the model's own modules round, so that in 16 bits both differ by the order of
sums alone: norms compute in float32, everything else in float32 between two roundings (float64 for
float64 states).
"""
