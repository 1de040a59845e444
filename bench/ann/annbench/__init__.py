"""Measures this project's index beside its peers."""
