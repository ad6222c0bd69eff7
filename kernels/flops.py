"""What each operation costs, counted: floating-point operations (2 per multiply-add), bytes that must move, parameters.

Softmax, norms and rotations are left out of the FLOP counts, as in the papers: they are under 1 % and run on other units.
"""


def attention_flops(query_tokens: int, key_tokens: int, width: int) -> int:
    """Scores and weighted sum of one row; width = heads * head dim."""
    return 4 * query_tokens * key_tokens * width


def cross_domain_attention_flops(tokens: int, width: int, *, image_reads_intrinsic: bool = True) -> int:
    """Both domains' rows of one picture (I-LDM, eq. 1 and 4), equal token counts: 16 N^2 D, or 12 N^2 D where the image's w is 0."""
    image_keys = 2 * tokens if image_reads_intrinsic else tokens
    return attention_flops(tokens, image_keys, width) + attention_flops(tokens, 2 * tokens, width)


def query_broadcast_flops(tokens: int, width: int, maps: int) -> int:
    """Attention of one LumiX block: every map on its own keys. The broadcast saves projections, not scores: `saved_query_flops`."""
    return maps * attention_flops(tokens, tokens, width)


def cross_intrinsic_flops(tokens: int, width: int, maps: int) -> int:
    """Attention of one block in which every map reads all maps (IntrinsiX): `maps` times `query_broadcast_flops`."""
    return maps * attention_flops(tokens, maps * tokens, width)


def saved_query_flops(tokens: int, width: int, maps: int) -> int:
    """Query projections that a block with a broadcast query does not compute: all maps' but one."""
    return (maps - 1) * 2 * tokens * width * width


def tensor_lora_parameters(width_in: int, width_out: int, maps: int, rank: int) -> int:
    """G1 [M, M, R], G2 [M, d_in, R, R], G3 [M, d_out, R]."""
    return maps * maps * rank + maps * width_in * rank * rank + maps * width_out * rank


def lumix_block_parameters(width: int, maps: int, rank: int) -> int:
    """The two Tensor LoRAs of a block: key and value together (out 2 d), and the output projection (out d)."""
    return tensor_lora_parameters(width, 2 * width, maps, rank) + tensor_lora_parameters(width, width, maps, rank)


def tensor_lora_flops(tokens: int, width_in: int, width_out: int, maps: int, rank: int) -> int:
    """Merged order: H = sum_j x[j] W[j], then H G3^T."""
    return 2 * maps * maps * tokens * width_in * rank + 2 * maps * tokens * rank * width_out


def tensor_lora_published_flops(tokens: int, width_in: int, width_out: int, maps: int, rank: int) -> int:
    """As the paper counts it: x G2 for every map, G1 and G3 for every (output map, input map) pair, then the sum over input maps."""
    pairs = maps * maps * tokens
    return 2 * maps * tokens * width_in * rank * rank + 2 * pairs * rank * rank + 2 * pairs * rank * width_out + pairs * width_out


def tensor_lora_upstream_flops(tokens: int, width_in: int, width_out: int, maps: int, rank: int) -> int:
    """Upstream order: cores merged in every call, every (output map, input map) pair expanded to d_out, then summed over input maps."""
    merge = 2 * maps * maps * width_in * rank * rank
    pairs = maps * maps * tokens
    return merge + 2 * pairs * width_in * rank + 2 * pairs * rank * width_out + pairs * width_out


def tensor_lora_shrink_bytes(tokens: int, width_in: int, maps: int, rank: int, element_bytes: int) -> int:
    """Byte floor of the first half: read x and the merged cores once, write the hidden values."""
    return (maps * tokens * (width_in + rank) + maps * maps * width_in * rank) * element_bytes


def tensor_lora_expand_bytes(tokens: int, width_out: int, maps: int, rank: int, element_bytes: int) -> int:
    """Byte floor of the second half, and of the key pass but for its rotations: read and write the output, read hidden values and G3."""
    return (maps * tokens * (2 * width_out + rank) + maps * width_out * rank) * element_bytes


def tensor_lora_bytes(tokens: int, width_in: int, width_out: int, maps: int, rank: int, element_bytes: int) -> int:
    """Byte floor of one update."""
    shrink = tensor_lora_shrink_bytes(tokens, width_in, maps, rank, element_bytes)
    return shrink + tensor_lora_expand_bytes(tokens, width_out, maps, rank, element_bytes)


def attention_bytes(rows: int, query_tokens: int, key_tokens: int, width: int, element_bytes: int) -> int:
    """Query in, output out, keys and values in, each once."""
    return rows * (2 * query_tokens + 2 * key_tokens) * width * element_bytes
