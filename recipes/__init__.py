"""Recipes that ship with genrec, one YAML a (method, data set, size)."""
