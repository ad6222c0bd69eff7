"""Intrinsic Lab: what a generative model knows about a scene, as ComfyUI nodes.

Nothing is imported here: ComfyUI calls `comfy_entrypoint`, and pytest may import this file without ComfyUI.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Entry point of ComfyUI's V3 node API; returns the extension that lists this pack's nodes."""
    import logging

    try:
        from .nodes import IntrinsicLabExtension
    except Exception:
        # ComfyUI logs only the message of what is raised here; the trace is what a bug report needs.
        logging.exception("Intrinsic Lab could not be loaded")
        raise
    return IntrinsicLabExtension()
