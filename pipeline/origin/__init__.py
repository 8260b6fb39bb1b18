"""What a file says of where it comes from, read from its metadata within bounds."""
