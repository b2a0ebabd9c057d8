"""Learning by assigning: clusters, prototypes, codes."""
