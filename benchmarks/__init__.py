"""The benchmark: C conmon and pyconmon side by side, in turn, in one run, on the same bundles.

`python -m benchmarks` runs it (`make bench`); docs/performance.md says what is measured and how.
Nothing in pyconmon or its client imports this package.
"""
