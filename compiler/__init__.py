"""bertc."""
