"""Image-text matching by aligned conceptual knowledge, without paired data (MACK; Huang et al., NeurIPS 2022)."""
