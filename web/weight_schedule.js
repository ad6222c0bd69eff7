// Draws a weight schedule's heat map inside its node while a widget is dragged, before anything runs.

import { app } from "../../scripts/app.js";
import { blocksOf, combinedSchedule, dropSchedule, gaussianSchedule, heatMap } from "./schedule_math.js";

const WIDGET = "schedule_preview";
const LEGEND = "left: noise, right: clean · top: first block · yellow: 1, dark: 0";
const ONLY_RUNNING_TELLS = "What is connected is known when the graph runs.";
const AS_IT_RAN = "As it last ran: what is connected is known when the graph runs.";
const UNREADABLE = "Write positions like 3-7, 9 and a table like 999: 0, 0: 1.";

// The stages of each network's self-attentions, by the names that preview_model offers: from the nodes' declarations.
let layouts = {};

function values(node) {
    return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]));
}

// By index: `input.link` and `output.links` are going away.
function connected(node, wanted) {
    return [...node.inputs.keys()].filter((index) => wanted(node.inputs[index]) && node.isInputConnected(index));
}

// The schedule a node makes, or in words why it cannot be told here.
function scheduleOf(node) {
    const kind = KINDS[node?.comfyClass];
    // A bypassed node hands something else on; a widget with a wire does not hold its value.
    if (!kind || node.mode !== 0 || connected(node, (input) => input.widget).length) return ONLY_RUNNING_TELLS;
    return kind(values(node), node) ?? UNREADABLE;
}

function connectedSchedules(node) {
    return connected(node, (input) => input.type === "WEIGHT_SCHEDULE").map((index) => scheduleOf(node.getInputNode(index)));
}

const KINDS = {
    IntrinsicLabDropSchedule: (v) => dropSchedule(v.where, v.positions, v.tau),
    IntrinsicLabGaussianSchedule: (v) => gaussianSchedule(v.alpha, v.tau, v.sigma),
    IntrinsicLabCombineSchedules: (v, node) => {
        const sources = connectedSchedules(node);
        const unknown = sources.find((schedule) => typeof schedule === "string");
        return unknown ?? combinedSchedule(sources, v.operation, v.factor, v.where, v.positions, v.over_time);
    },
};

function draw(node) {
    const canvas = node.schedulePreview;
    // While it moves into a subgraph, a node is in no graph: it is drawn again when it is.
    if (!canvas || !node.graph) return;
    const schedule = scheduleOf(node);
    const context = canvas.getContext("2d");
    const drawn = typeof schedule === "function";
    if (drawn) {
        const picture = heatMap(schedule, blocksOf(layouts[values(node).preview_model]));
        Object.assign(canvas, { width: picture.width, height: picture.height });
        context.putImageData(new ImageData(picture.data, picture.width, picture.height), 0, 0);
    } else {
        context.clearRect(0, 0, canvas.width, canvas.height);
    }
    canvas.dataset.drawn = drawn ? "yes" : "no";
    canvas.nextSibling.textContent = drawn ? LEGEND : schedule;
    for (const slot of node.outputs.keys()) {
        for (const target of node.getOutputNodes(slot) ?? []) if (KINDS[target.comfyClass]) draw(target);
    }
}

// Bypassing a node calls nothing on it or on those that it is connected to. What is shown as it ran stays.
function drawWhatFollows() {
    for (const node of app.canvas?.graph?.nodes ?? []) {
        if (node.comfyClass !== "IntrinsicLabCombineSchedules") continue;
        if (typeof scheduleOf(node) === "function" || node.schedulePreview?.dataset.drawn === "yes") draw(node);
    }
}

// The picture that Python made, where this file cannot make it.
function showWhatRan(node, output) {
    const [file] = output?.heat_map ?? [];
    if (!file || !node.graph || scheduleOf(node) !== ONLY_RUNNING_TELLS) return;
    const canvas = node.schedulePreview;
    const picture = new Image();
    picture.onload = () => {
        Object.assign(canvas, { width: picture.width, height: picture.height });
        canvas.getContext("2d").drawImage(picture, 0, 0);
        canvas.dataset.drawn = "as it ran";
        canvas.nextSibling.textContent = AS_IT_RAN;
    };
    picture.src = app.api.apiURL(`/view?${new URLSearchParams(file)}`);
}

function after(object, method, then) {
    const original = object[method];
    object[method] = function (...args) {
        const result = original?.apply(this, args);
        then(...args);
        return result;
    };
}

function previewOf(node) {
    const box = document.createElement("div");
    box.style.cssText = "display: flex; flex-direction: column; width: 100%; height: 100%;";
    const canvas = document.createElement("canvas");
    canvas.style.cssText = "width: 100%; flex: 1 1 0; min-height: 0; image-rendering: pixelated;";
    const caption = document.createElement("small");
    caption.style.cssText = "flex: none; font: 10px sans-serif; opacity: 0.7; text-align: center;";
    box.append(canvas, caption);
    node.schedulePreview = canvas;
    return box;
}

app.registerExtension({
    name: "intrinsiclab.weight_schedule",
    setup() {
        app.api.addEventListener("graphChanged", drawWhatFollows);
    },
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (KINDS[nodeData.name]) layouts = nodeData.input.required.preview_model[1].layouts;
    },
    nodeCreated(node) {
        if (!KINDS[node.comfyClass]) return;
        const redraw = () => draw(node);
        for (const widget of node.widgets) after(widget, "callback", redraw);
        node.addDOMWidget(WIDGET, "canvas", previewOf(node), { serialize: false, getMinHeight: () => 106, getMaxHeight: () => 200 });
        after(node, "onConfigure", redraw);
        after(node, "onConnectionsChange", () => requestAnimationFrame(redraw));
        after(node, "onExecuted", (output) => showWhatRan(node, output));
        requestAnimationFrame(redraw);
    },
});
