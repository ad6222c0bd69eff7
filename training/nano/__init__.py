"""The bundled nano base: a Stable-Diffusion-like model of the `scenes` world, small enough to travel in the repository."""
