"""Open what was embedded, iterate over it, and export it."""
