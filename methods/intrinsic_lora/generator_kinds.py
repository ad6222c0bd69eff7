"""Kinds of generators that are no diffusion models, and the files each comes in: what a list needs before anything is read."""

KIND_NAMES = {"vqgan": "VQGAN", "gan": "GAN"}
# In the config.json of folders: diffusers' VQGAN, and a style-based generator in a format of our own.
CLASSES = {"vqgan": "VQModel", "gan": "IntrinsicLabStyleGenerator"}
# Of single files: taming-transformers' checkpoints; rosinality's and NVlabs' StyleGAN2.
PUBLISHED = {"vqgan": (".ckpt",), "gan": (".pt", ".pkl")}
