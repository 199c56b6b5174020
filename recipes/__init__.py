"""Recipes that ship with bertc: `<name>.toml`, and model code that a recipe needs."""
