"""How each kind of network is held: its attentions, how a patch attaches."""
