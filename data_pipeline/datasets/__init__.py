"""The public data sets: reads their annotation files as they are distributed, one module for each data set."""
