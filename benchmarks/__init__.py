"""Speed and memory, measured against named peers and the machine's limits: `python -m benchmarks`."""
