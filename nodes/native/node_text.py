"""Text that a node shows while the graph runs."""


def show_on_node(text: str, node_id: str | None) -> None:
    """Text on the node itself, as core's Get Image Size does; needs a running server.

    A node that another one expanded into (its number has a dot) says nothing: it would take the place of what the outer one tells.
    """
    if node_id is None or "." in node_id:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
