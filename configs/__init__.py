"""The recipes, one YAML file each, as data of the package."""
