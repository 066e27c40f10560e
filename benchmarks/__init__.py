"""Side-by-side benchmarks: `python -m benchmarks.<room> [--quick] [--json FILE]`."""
