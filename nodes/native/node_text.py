"""Text that a node shows while the graph runs."""


def show_on_node(text: str, node_id: str | None) -> None:
    """Text on the node itself, as core's Get Image Size does; needs a running server."""
    if node_id is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
