"""Press any number of images into feature vectors."""

__version__ = "0.1.0"
