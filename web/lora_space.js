// LoRA space in the front end: the map inside Draw LoRA Map, and "Find similar LoRAs" in the menu of every LoRA loader.

import { app } from "../../scripts/app.js";
import { after } from "./hooks.js";
import { MapView } from "./lora_map_view.js";
import { setWidget, widgetOf } from "./loras.js";
import { similarEntries } from "./similar_panel.js";
import { readTexts } from "./texts.js";

const MAP = "IntrinsicLabLoRAMap";
const FIND = "IntrinsicLabFindSimilarLoRAs";
const INDEX = "IntrinsicLabIndexLoRAs";

// Search nodes that are fed by the same index as `node`.
function searchesBeside(node) {
    const source = (one) => {
        const slot = one.inputs?.findIndex((input) => input.name === "lora_index") ?? -1;
        return slot < 0 ? null : one.getInputNode(slot);
    };
    const index = source(node);
    return index ? node.graph._nodes.filter((other) => other.comfyClass === FIND && source(other) === index) : [];
}

// Adds the two nodes of a search for a LoRA, below its loader, and wires them.
function addSearch(loader, name) {
    const { graph } = app.canvas;
    const add = (type, x) => {
        const node = LiteGraph.createNode(type);
        node.pos = [loader.pos[0] + x, loader.pos[1] + loader.size[1] + 60];
        graph.add(node);
        return node;
    };
    const index = add(INDEX, 0);
    const search = add(FIND, index.size[0] + 40);
    index.connect(0, search, search.findInputSlot("lora_index"));
    setWidget(search, widgetOf(search, "query"), name);
    app.canvas.selectItems([index, search]);
}

function addMap(node) {
    const view = new MapView({
        choose(name) {
            setWidget(node, widgetOf(node, "selected"), name);
            for (const search of searchesBeside(node)) setWidget(search, widgetOf(search, "query"), name);
        },
        list: (names) => setWidget(node, widgetOf(node, "listed"), names.join(" | ")),
        selected: () => widgetOf(node, "selected")?.value,
    });
    node.loraMap = view;
    node.addDOMWidget("lora_map", "map", view.element, { serialize: false, getMinHeight: () => 320 });
    after(node, "onExecuted", (output) => output?.lora_map?.[0] && view.setMap(output.lora_map[0]));
    after(widgetOf(node, "selected"), "callback", () => view.redraw());
    const showListed = (text) => view.setListed(String(text ?? "").split("|").map((name) => name.trim()).filter(Boolean));
    after(widgetOf(node, "listed"), "callback", showListed);
    after(node, "onConfigure", () => showListed(widgetOf(node, "listed").value));
    after(node, "onRemoved", () => view.close());
}

const look = document.createElement("link");
Object.assign(look, { rel: "stylesheet", href: new URL("lora_space.css", import.meta.url).href });
document.head.append(look);

app.registerExtension({
    name: "intrinsiclab.lora_space",
    init: readTexts,
    nodeCreated(node) {
        if (node.comfyClass === MAP) addMap(node);
    },
    getNodeMenuItems: (node) => similarEntries(node, addSearch),
});
