"""Exact-arithmetic probes: layers and inputs whose every output bit is known in advance, each built to read one part of the kernel."""
