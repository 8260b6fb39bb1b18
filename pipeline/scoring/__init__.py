"""Photos in, rows out: on this machine or on a cluster."""
