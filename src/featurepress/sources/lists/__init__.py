"""Images that lists name by path or URL."""
