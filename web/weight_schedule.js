// Draws a weight schedule's heat map inside its node while a widget is dragged, before anything runs.

import { app } from "/scripts/app.js";
import { LAYOUTS, combinedSchedule, dropSchedule, gaussianSchedule, heatMap } from "./schedule_math.js";

const WIDGET = "schedule_preview";

function values(node) {
    return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]));
}

// The schedule a node makes, or null where only running the graph can tell.
function scheduleOf(node) {
    const kind = KINDS[node?.comfyClass];
    return kind ? kind(values(node), node) : null;
}

function connectedSchedules(node) {
    const sources = node.inputs.filter((input) => input.type === "WEIGHT_SCHEDULE" && input.link != null);
    const schedules = sources.map((input) => scheduleOf(node.getInputNode(node.inputs.indexOf(input))));
    return schedules.includes(null) ? null : schedules;
}

const KINDS = {
    IntrinsicLabDropSchedule: (v) => dropSchedule(v.where, v.positions, v.tau),
    IntrinsicLabGaussianSchedule: (v) => gaussianSchedule(v.alpha, v.tau, v.sigma),
    IntrinsicLabCombineSchedules: (v, node) => {
        const connected = connectedSchedules(node);
        return connected && combinedSchedule(connected, v.operation, v.factor, v.where, v.positions, v.over_time);
    },
};

function draw(node) {
    const canvas = node.schedulePreview;
    if (!canvas) return;
    const schedule = scheduleOf(node);
    const context = canvas.getContext("2d");
    if (schedule) {
        const picture = heatMap(schedule, LAYOUTS[values(node).preview_model]);
        Object.assign(canvas, { width: picture.width, height: picture.height });
        context.putImageData(new ImageData(picture.data, picture.width, picture.height), 0, 0);
    } else {
        context.clearRect(0, 0, canvas.width, canvas.height);
    }
    canvas.dataset.drawn = schedule ? "yes" : "no";
    for (const output of node.outputs ?? []) {
        for (const id of output.links ?? []) {
            const target = node.graph?.getNodeById(node.graph.links[id]?.target_id);
            if (target && KINDS[target.comfyClass]) draw(target);
        }
    }
}

function after(object, method, then) {
    const original = object[method];
    object[method] = function (...args) {
        const result = original?.apply(this, args);
        then();
        return result;
    };
}

app.registerExtension({
    name: "intrinsic_lab.weight_schedule",
    nodeCreated(node) {
        if (!KINDS[node.comfyClass]) return;
        const canvas = document.createElement("canvas");
        canvas.style.cssText = "width: 100%; height: 100%; image-rendering: pixelated;";
        canvas.title = "Blocks from top to bottom, sampling from left (noise) to right (clean); dark is 0, yellow is 1.";
        node.schedulePreview = canvas;
        const redraw = () => draw(node);
        for (const widget of node.widgets) after(widget, "callback", redraw);
        node.addDOMWidget(WIDGET, "canvas", canvas, { serialize: false, getMinHeight: () => 90, getMaxHeight: () => 180 });
        after(node, "onConfigure", redraw);
        after(node, "onConnectionsChange", () => requestAnimationFrame(redraw));
        requestAnimationFrame(redraw);
    },
});
