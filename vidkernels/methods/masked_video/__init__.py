"""Pretraining by predicting masked parts of a video."""
