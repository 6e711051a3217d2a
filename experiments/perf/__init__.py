"""What a train step costs: measured on the devices here, or compiled for those of a TPU slice."""
