"""Entry points with the names and arguments of other libraries."""
