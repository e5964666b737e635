"""Augmentation of whole batches on the training device: every pixel is a pure function of (seed, view, index)."""
