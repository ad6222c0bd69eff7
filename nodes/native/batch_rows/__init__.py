"""Which rows of a batch belong to which map or domain."""
