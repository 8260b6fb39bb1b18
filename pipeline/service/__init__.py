"""The web service: its page, its detectors and its generator of faces."""
