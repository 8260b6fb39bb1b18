"""Detectors side by side on labelled pictures."""
