"""The frames of videos, read like photos."""
