"""The two classes, and the order in which everything counts them."""

REAL, FAKE = 0, 1
CLASS_NAMES = ("real", "fake")
