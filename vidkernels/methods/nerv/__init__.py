"""Video as networks."""
