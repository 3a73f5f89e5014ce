"""Images that are files: in folders and in buckets."""
