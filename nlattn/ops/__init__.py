"""Public functions: check, allocate, call one or two kernels, return."""
