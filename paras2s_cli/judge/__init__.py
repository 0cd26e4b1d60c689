"""The judge: what was said, in which tone, and how well the answer fits."""
