"""cellray: which loss function segments, detects and counts cells best on your images."""

__version__ = "0.1.0"
