"""Constrained beam search: a recommender that is unable to write an item that does not exist."""
