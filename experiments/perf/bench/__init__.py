"""`stgt bench`: time and memory of graph attention and of the train step, relative to the device's peak."""
