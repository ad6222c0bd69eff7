"""What materials are made of, out of their node trees, and how to see the light that falls on them. Needs `bpy`.

Every value that a material's shaders mix is written to an AOV (Cycles' output of any value in a node tree), weighted by the
surface's opacity; surfaces of opacity below a half count as not there, which is also Cycles' rule for depth.
"""

from dataclasses import dataclass
from typing import Any

# AOV -> its type. "weight" is the opacity by which the others must be divided.
AOVS = {"albedo": "COLOR", "normal": "COLOR", "roughness": "VALUE", "metallic": "VALUE", "weight": "VALUE"}
PREFIX = "intrinsic "
OPAQUE = 0.5


@dataclass(frozen=True)
class Appearance:
    """Sockets of a shader's values, each times the opacity; `normal` is a socket with the bump, or None."""

    albedo: Any
    roughness: Any
    metallic: Any
    opacity: Any
    normal: Any = None


class Unread(ValueError):
    """A shader whose values cannot be read from its nodes; the message names it."""


class Tree:
    """A node tree with the few operations on sockets that are needed here."""

    def __init__(self, tree: Any) -> None:
        self.nodes, self.links = tree.nodes, tree.links

    def color(self, *rgb: float) -> Any:
        node = self.nodes.new("ShaderNodeRGB")
        node.outputs[0].default_value = (*rgb, 1.0)
        return node.outputs[0]

    def number(self, value: float) -> Any:
        node = self.nodes.new("ShaderNodeValue")
        node.outputs[0].default_value = value
        return node.outputs[0]

    def of(self, node: Any, name: str) -> Any:
        """What feeds an input: the socket linked to it, or a constant of its value."""
        given = node.inputs[name]
        if given.is_linked:
            return given.links[0].from_socket
        return self.color(*given.default_value[:3]) if given.type == "RGBA" else self.number(given.default_value)

    def math(self, operation: str, first: Any, second: Any) -> Any:
        node = self.nodes.new("ShaderNodeMath")
        node.operation = operation
        self.links.new(first, node.inputs[0])
        self.links.new(second, node.inputs[1])
        return node.outputs[0]

    def scaled(self, color: Any, share: Any) -> Any:
        """A colour or vector times a number."""
        node = self.nodes.new("ShaderNodeVectorMath")
        node.operation = "SCALE"
        self.links.new(color, node.inputs[0])
        self.links.new(share, node.inputs["Scale"])
        return node.outputs[0]

    def sum(self, first: Any, second: Any) -> Any:
        node = self.nodes.new("ShaderNodeVectorMath")
        self.links.new(first, node.inputs[0])
        self.links.new(second, node.inputs[1])
        return node.outputs[0]

    def shader(self, kind: str, **inputs: Any) -> Any:
        """The output of a new shader node with these inputs linked."""
        node = self.nodes.new(kind)
        for name, socket in inputs.items():
            self.links.new(socket, node.inputs[name])
        return node.outputs[0]

    def mixed(self, share: Any, first: Any, second: Any) -> Any:
        """Shaders: the first where `share` is 0, the second where it is 1."""
        node = self.nodes.new("ShaderNodeMixShader")
        for index, socket in enumerate((share, first, second)):
            self.links.new(socket, node.inputs[index])
        return node.outputs[0]


def expose(material: Any) -> None:
    """Add AOV outputs to a material's nodes, and a hidden switch that `show_light` turns. Raises Unread, having added what it could."""
    if not material.use_nodes:
        material.use_nodes = True
    tree = Tree(material.node_tree)
    output = material.node_tree.get_output_node("CYCLES")
    if output is None or not output.inputs["Surface"].is_linked:
        return
    surface = output.inputs["Surface"].links[0].from_socket
    look, unread = None, None
    try:
        look = _read(tree, surface.node)
    except Unread as error:
        unread = error
    opacity = look.opacity if look else tree.number(1.0)
    there = tree.math("GREATER_THAN", opacity, tree.number(OPAQUE - 1e-6))
    weight = tree.math("MULTIPLY", opacity, there)
    geometry = tree.nodes.new("ShaderNodeNewGeometry")
    values = {"normal": geometry.outputs["Normal"]}
    if look:
        values |= {"albedo": tree.scaled(look.albedo, there), "weight": weight}
        values |= {name: tree.math("MULTIPLY", getattr(look, name), there) for name in ("roughness", "metallic")}
    values["normal"] = tree.scaled(values["normal"], there)
    for name, socket in values.items():
        node = tree.nodes.new("ShaderNodeOutputAOV")
        node.aov_name = PREFIX + name
        tree.links.new(socket, node.inputs["Color" if AOVS[name] == "COLOR" else "Value"])

    bumped = look.normal if look and look.normal else geometry.outputs["Normal"]
    white = tree.shader("ShaderNodeBsdfDiffuse", Color=tree.color(1, 1, 1), Normal=bumped)
    covered = tree.mixed(opacity, tree.shader("ShaderNodeBsdfTransparent"), white)
    switch = tree.number(0.0)
    switch.node.name = switch.node.label = PREFIX + "switch"
    seen = tree.math("MULTIPLY", tree.nodes.new("ShaderNodeLightPath").outputs["Is Camera Ray"], switch)
    tree.links.new(tree.mixed(seen, surface, covered), output.inputs["Surface"])
    if unread:
        raise unread


def show_light(material: Any, shown: bool) -> None:
    """Whether the camera sees the material as white and matte: the picture is then its irradiance / pi. Other rays see it as it is."""
    node = material.node_tree.nodes.get(PREFIX + "switch")
    if node:
        node.outputs[0].default_value = float(shown)


def _read(tree: Tree, node: Any) -> Appearance:
    """The values of a shader node and of those it mixes."""
    zero, one = (lambda: tree.number(0.0)), (lambda: tree.number(1.0))
    normal = node.inputs["Normal"].links[0].from_socket if "Normal" in node.inputs and node.inputs["Normal"].is_linked else None
    kind = node.type
    if kind == "BSDF_PRINCIPLED":
        opacity = tree.of(node, "Alpha")
        glass = tree.math("SUBTRACT", one(), tree.of(node, "Transmission Weight"))
        roughness, metallic = (tree.math("MULTIPLY", tree.of(node, name), opacity) for name in ("Roughness", "Metallic"))
        return Appearance(tree.scaled(tree.scaled(tree.of(node, "Base Color"), glass), opacity), roughness, metallic, opacity, normal)
    if kind in ("BSDF_DIFFUSE", "BSDF_TRANSLUCENT", "BSDF_SHEEN", "SUBSURFACE_SCATTERING"):
        return Appearance(tree.of(node, "Color"), one(), zero(), one(), normal)
    if kind in ("BSDF_GLOSSY", "BSDF_METALLIC"):
        color = "Base Color" if kind == "BSDF_METALLIC" else "Color"
        return Appearance(tree.of(node, color), tree.of(node, "Roughness"), one(), one(), normal)
    if kind in ("BSDF_GLASS", "BSDF_REFRACTION"):
        return Appearance(tree.color(0, 0, 0), tree.of(node, "Roughness"), zero(), one(), normal)
    if kind == "EMISSION":
        return Appearance(tree.color(0, 0, 0), one(), zero(), one())
    if kind == "BSDF_TRANSPARENT":
        return Appearance(tree.color(0, 0, 0), zero(), zero(), zero())
    if kind == "MIX_SHADER" and node.inputs[1].is_linked and node.inputs[2].is_linked:
        first, second = (_read(tree, node.inputs[index].links[0].from_node) for index in (1, 2))
        share = tree.of(node, "Fac")
        rest = tree.math("SUBTRACT", one(), share)

        def mixed(name: str) -> Any:
            parts = (tree.math("MULTIPLY", getattr(look, name), part) for look, part in ((first, rest), (second, share)))
            return tree.math("ADD", *parts)

        albedo = tree.sum(tree.scaled(first.albedo, rest), tree.scaled(second.albedo, share))
        return Appearance(albedo, mixed("roughness"), mixed("metallic"), mixed("opacity"), second.normal or first.normal)
    raise Unread(f"a shader of kind {kind}")
