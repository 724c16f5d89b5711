"""Time and memory of attention against the whole matrix, fused attention and the released code."""
