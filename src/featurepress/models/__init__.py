"""The models: what they are (catalog) and where their files lie (store)."""
