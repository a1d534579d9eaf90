"""Other programs for the same work, which the benchmarks run beside ours; nothing needs them."""
