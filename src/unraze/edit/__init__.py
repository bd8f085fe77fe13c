"""Edit with what was learned: a trained denoiser is a prior over images, and each of these is it
with something else known.

Functions of a denoiser that return one (`restoration`, `composition`, `inpainting.replaced`), or
walks like the samplers (`inpainting.repaint`, `inversion.invert`); `variation` has where to start
from. `editing` does it with a run's model.
"""
