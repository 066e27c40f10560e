"""Learned data manipulation: weights and augmentations learned on a validation set (Hu et al. 2019)."""
