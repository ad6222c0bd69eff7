"""Trainers of generators that are no diffusion models, and of the Intrinsic LoRAs on them: VQGAN and style-based GAN."""
