"""The detector folder: what scoring needs to know, and the graph that it runs."""
