"""Text that a node shows, while the graph runs and after it."""

from comfy_api.latest import ui


def show_on_node(text: str, node_id: str | None) -> None:
    """Text on the node itself, as core's Get Image Size does; needs a running server.

    A node that another one expanded into (its number has a dot) says nothing: it would take the place of what the outer one tells.
    """
    if node_id is None or "." in node_id:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(_lines_kept(text), node_id)


def preview_text(text: str) -> ui.PreviewText:
    """Text that stays on the node, line by line."""
    return ui.PreviewText(_lines_kept(text))


def _lines_kept(text: str) -> str:
    """The front end reads texts as Markdown, in which two spaces end a line."""
    return text.replace("\n", "  \n")
