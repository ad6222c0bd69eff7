// What a node shows after it ran, where the front end alone would show too little or too much.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TRAININGS = ["LoRA", "IntrinsicVAE", "JointLoRA", "TensorLoRA"].map((name) => `IntrinsicLabTrain${name}`);
// Nodes that say something on themselves while they run (nodes/native/node_text.py).
const TELLING = ["PictureToMaps", "ApplyLoRA", "CompareMaps", "EvaluateMaps"].map((name) => `IntrinsicLab${name}`);
const SHEETS = "intrinsic_lab.sheets"; // Pictures by run, in the order they came.
const MOST = 100;

const sheets = new Map(JSON.parse(sessionStorage.getItem(SHEETS) ?? "[]"));
const runs = new Map(); // The run that a node belongs to.

// The curve is seen once: while a training runs as a preview, afterwards as its result. Nodes 2.0 would show both. The front end has no
// call for this; where its store is another one some day, the preview stays.
function dropPreview(node) {
    const stores = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s;
    stores?.get("nodeOutput")?.revokePreviewsByExecutionId?.(node);
}

// Of a node that did not run again, ComfyUI sends what it had told, but no longer shows it; and newer front ends take all texts away at the
// end of a run.
const told = new Map(); // The pack's nodes that told something in this run, and what, by their place: "12", or "12:5" in a subgraph.
const ENDINGS = ["execution_success", "execution_error", "execution_interrupted"];

function nodeAt(place) {
    let node, graph = app.graph.rootGraph ?? app.graph;
    for (const id of String(place).split(":")) {
        node = graph?.getNodeById(id);
        graph = node?.subgraph;
    }
    return node;
}

function tellAgain(node, text) {
    api.dispatchCustomEvent("progress_text", { nodeId: node, text });
}

// Of a node that stands for others, ComfyUI keeps its own results, not what those others showed in it.
function sheetOf(detail, node) {
    const { output } = detail;
    const run = output?.run?.[0];
    if (run) {
        runs.set(node, run);
        const images = sheets.get(run);
        if (images) api.dispatchCustomEvent("executed", { ...detail, output: { text: output.text, images } });
    } else if (output?.images && runs.has(node)) {
        sheets.set(runs.get(node), output.images);
        while (sheets.size > MOST) sheets.delete(sheets.keys().next().value);
        sessionStorage.setItem(SHEETS, JSON.stringify([...sheets]));
    }
}

app.registerExtension({
    name: "intrinsiclab.node_results",
    setup() {
        api.addEventListener("executed", ({ detail }) => {
            const shown = String(detail.display_node ?? detail.node);
            const kind = nodeAt(shown)?.comfyClass;
            if (TRAININGS.includes(kind) && detail.output?.images) dropPreview(shown);
            if (TELLING.includes(kind) && String(detail.node) === shown && detail.output?.text) tellAgain(shown, detail.output.text.join("\n"));
            if (kind === "IntrinsicLabPictureToMaps") sheetOf(detail, shown);
        });
        api.addEventListener("execution_start", () => told.clear());
        api.addEventListener("progress_text", ({ detail }) => {
            const node = nodeAt(detail.nodeId);
            if (node?.comfyClass?.startsWith("IntrinsicLab")) told.set(String(detail.nodeId), { node, text: detail.text });
        });
        // After what the front end itself does then.
        const keep = () => setTimeout(() => told.forEach(({ node, text }, place) => nodeAt(place) === node && tellAgain(place, text)));
        for (const ending of ENDINGS) api.addEventListener(ending, keep);
    },
});
