"""Bytes <-> exact reals: E2M1 codes, E8M0 scales, MXFP4 blocks, and the canonical weights of a layer."""
