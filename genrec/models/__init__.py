"""Backbones, vocabulary extension, adapters, and the sequence recommender that is baseline and teacher."""
