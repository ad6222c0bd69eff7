// Tells at once when a map's data is wired into a node that wants a picture: it would be clipped, dark or upside down without a word.

import { app } from "../../scripts/app.js";

const FORMATS = {
    normal: "Format Normals",
    depth: "Format Depth",
    albedo: "Format Albedo or Shading",
    shading: "Format Albedo or Shading",
    irradiance: "Format Albedo or Shading",
    specular: "Format Albedo or Shading",
};
// Nodes of the pack whose outputs of these names are pictures.
const PICTURES = ["IntrinsicLabPictureToMaps", "IntrinsicLabPicturesOfMaps", "IntrinsicLabFormatNormals"];
// Core's nodes that want pictures.
const TAKERS = [
    ...["PreviewImage", "SaveImage", "SaveImageAdvanced", "SaveAnimatedPNG", "SaveAnimatedWEBP", "CreateVideo", "ImageCompare"],
    ...["VAEEncode", "VAEEncodeForInpaint", "ControlNetApply", "ControlNetApplyAdvanced", "ControlNetApplySD3"],
];
const LIFE = 12000; // Milliseconds.

function savesFloats(node) {
    return node.widgets?.some((widget) => widget.name === "format" && widget.value === "exr");
}

// What is wrong with a wire, in words; null where nothing is.
function wrongWire(source, slot, target) {
    const kind = source?.comfyClass ?? "";
    const name = source?.outputs?.[slot]?.name;
    if (!kind.startsWith("IntrinsicLab") || PICTURES.includes(kind) || !Object.hasOwn(FORMATS, name) || savesFloats(target)) return null;
    return `${name} of ${source.title} is data, no picture: ${target.title} would show it wrongly. Put ${FORMATS[name]} between them.`;
}

app.registerExtension({
    name: "intrinsiclab.map_wires",
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!TAKERS.includes(nodeData.name)) return;
        const changed = nodeType.prototype.onConnectionsChange;
        nodeType.prototype.onConnectionsChange = function (side, slot, connected, link) {
            changed?.apply(this, arguments);
            // Graphs that are opened may be as they are.
            if (side !== LiteGraph.INPUT || !connected || !link || app.configuringGraph) return;
            const detail = wrongWire(this.graph?.getNodeById(link.origin_id), link.origin_slot, this);
            if (detail) app.extensionManager.toast.add({ severity: "warn", summary: "Data, not a picture", detail, life: LIFE });
        };
    },
});
