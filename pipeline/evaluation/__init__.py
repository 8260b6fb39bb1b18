"""How good a detector is, and what its model card says of it."""
