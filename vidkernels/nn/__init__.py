"""Drop-in modules, by family."""
