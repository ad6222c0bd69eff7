// Lists of LoRAs show what fits the model that comes in, as far as it is known; what is chosen stays in the list and in the graph.

import { app } from "../../scripts/app.js";
import { ask, offered, widgetOf } from "./loras.js";

// Nodes that say which model they load -> the input that names it.
const LOADERS = {
    IntrinsicLabLoadModel: "model",
    CheckpointLoaderSimple: "ckpt_name",
    UNETLoader: "unet_name",
    IntrinsicLabPictureToMaps: "model_name",
};
// Nodes with lists of LoRAs -> the lists, and the map that a list is for.
const LISTS = {
    IntrinsicLabApplyLoRA: { lora_name: "" },
    IntrinsicLabApplyTensorLoRA: { lora_name: "" },
    IntrinsicLabPictureToMaps: { normal_lora: "normal", depth_lora: "depth", albedo_lora: "albedo", shading_lora: "shading" },
};
const MOST_STEPS = 100;

// What the server said, by question, until lists are loaded anew.
const answers = new Map();

// The node that loads a node's MODEL and the model's name; null where that is not known.
function modelOf(node, steps = MOST_STEPS) {
    const isModel = (input) => input.link != null && (input.type === "MODEL" || node.type === "Reroute");
    const linked = node.inputs?.filter(isModel) ?? [];
    // Whatever is done to a MODEL on its way, its layers keep their shapes.
    if (linked.length) {
        const source = linked.length === 1 && steps > 0 ? node.getInputNode(node.inputs.indexOf(linked[0])) : null;
        return source && modelOf(source, steps - 1);
    }
    const name = LOADERS[node.type];
    const given = node.inputs?.some((input) => (input.widget?.name ?? input.name) === name && input.link != null);
    const model = name && !given ? widgetOf(node, name)?.value : null;
    return typeof model === "string" ? { loader: node.type, model } : null;
}

function answerTo(question) {
    if (!answers.has(question)) {
        const nothing = { misfits: [], maps: {} };
        answers.set(question, ask(`fitting_loras?${question}`).catch(() => (answers.delete(question), nothing)));
    }
    return answers.get(question);
}

async function narrow(node) {
    const known = modelOf(node);
    const question = known ? new URLSearchParams({ node: node.type, ...known }).toString() : "";
    node.loraQuestion = question;
    const { misfits, maps } = question ? await answerTo(question) : { misfits: [], maps: {} };
    // The graph may be another one by now.
    if (node.loraQuestion !== question) return;
    const without = new Set(misfits);
    for (const [name, map] of Object.entries(LISTS[node.type])) {
        const widget = widgetOf(node, name);
        if (!widget) continue;
        const fits = (lora) => !without.has(lora === "bundled" ? `nano/${map} (bundled)` : lora) && (!map || (maps[lora] ?? map) === map);
        const values = offered(node.type, name).filter((lora) => lora === widget.value || fits(lora));
        // Nodes 2.0 sees what is changed by way of its own record of the widget, which has the same options.
        const { options } = widget._state ?? widget;
        if (String(values) !== String(options.values)) options.values = values;
    }
}

function narrowAll() {
    const root = app.rootGraph ?? app.graph;
    const nodes = [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?._nodes ?? []);
    for (const node of nodes) if (LISTS[node.type]) narrow(node);
}

app.registerExtension({
    name: "intrinsiclab.fitting_loras",
    setup: () => app.api.addEventListener("graphChanged", narrowAll),
    afterConfigureGraph: narrowAll,
    refreshComboInNodes() {
        answers.clear();
        narrowAll();
    },
});
