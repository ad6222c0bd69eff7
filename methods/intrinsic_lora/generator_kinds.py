"""Kinds of generators that are no diffusion models, and the files each comes in: what a list needs before anything is read."""

KIND_NAMES = {"vqgan": "VQGAN", "gan": "GAN"}
# In the config.json of folders: diffusers' VQGAN, and style-based generators in a format of our own.
CLASSES = {"vqgan": ("VQModel",), "gan": ("IntrinsicLabStyleGenerator", "IntrinsicLabAliasFreeGenerator")}
# Of single files: taming-transformers' checkpoints; rosinality's StyleGAN2, NVlabs' StyleGAN2 and StyleGAN3, StyleGAN-XL.
PUBLISHED = {"vqgan": (".ckpt",), "gan": (".pt", ".pkl")}
