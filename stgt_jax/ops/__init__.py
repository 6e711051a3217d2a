"""Array functions without parameters: attention, graph attention and their kernels, and indexing over devices."""
