"""LoRA files of every kind: read safely, named the same whatever the spelling, their change of the weights.

spellings  prefixes and components, as trainers write them      names     one name per module, fused rows, parts of the network
formats/   one file per kind of weights, read or refused        families  which base model, from shapes and metadata
header, weight_file, cache   a safetensors file without trust, and what a run over many keeps
modules    what a header says: modules and facts                reading   the changes of the weights, a `Delta` (delta.py) per module
lora_file  plain LoRAs whole, pickles without code too          scales    factors where a file has no alpha
"""
