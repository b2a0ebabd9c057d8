"""Comparisons for tests and benchmarks, and the runner of an op's named cases."""

from vidkernels.testing.compare import assert_close, assert_gradient_close
from vidkernels.testing.run import all_cases, arguments, results, strided_copy, to_float64

__all__ = ["all_cases", "arguments", "assert_close", "assert_gradient_close", "results", "strided_copy", "to_float64"]
