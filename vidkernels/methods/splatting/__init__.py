"""Video as Gaussians."""
