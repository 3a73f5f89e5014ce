"""Reduce, train, evaluate and predict."""
