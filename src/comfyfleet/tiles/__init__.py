"""A picture in tiles: where they lie, in which order they come, how they become one again.

Knows torch, neither ComfyUI nor who computes a tile.

A *step* is one tile of one pass: what is cropped, at which size it is computed, where it is drawn
and how strongly. A *canvas* is the picture that steps are drawn onto.
"""
