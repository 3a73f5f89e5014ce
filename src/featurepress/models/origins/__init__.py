"""Where models come from: Keras Applications, files, and a hub."""
