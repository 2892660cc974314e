"""Bounds beside the exact radius: by margins, on features, for the vote of k neighbours, and among 8-bit images."""

__all__: list[str] = []  # what is public is in nn_adv.certify
