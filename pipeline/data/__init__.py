"""Datasets: preparing, reading and auditing them."""
