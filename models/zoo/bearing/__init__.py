"""Bearing state from vibration: a 1D-CNN in INT8. See MODEL_CARD.md; `python -m models.zoo.bearing.train` makes it again."""
