"""Array functions without parameters: the attention kernels the models are made of."""
