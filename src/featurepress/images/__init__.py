"""Turn the bytes of an image into pixels, and pixels into the input of a model."""
