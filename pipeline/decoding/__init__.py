"""What the decoders of single file formats need: which format it is, and what is wrong with it."""
