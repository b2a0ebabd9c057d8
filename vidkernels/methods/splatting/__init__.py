"""Video as Gaussians, layers, particles and radiance fields."""
