"""Images in the rows of tables."""
