"""From a script's arguments to a detector folder."""
