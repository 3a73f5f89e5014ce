"""Embed images: one shard of a run, or values in memory."""
