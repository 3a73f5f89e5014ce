"""Draw an orchard of fruit images for the first run and for tests."""
