"""Recipes: YAML files with dotted overrides, checked against pydantic models, all errors at once."""
