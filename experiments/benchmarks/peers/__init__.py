"""Other programs for the same work. The benchmarks run them beside ours if they are installed."""
