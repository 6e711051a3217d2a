"""`stgt compile`: a recipe's train step, compiled for a TPU slice that need not be there, and what it would take."""
