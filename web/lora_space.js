// The LoRA map inside its node: pointing shows a preview picture, a click chooses. "Find similar LoRAs" on every LoRA loader.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const MAP = "IntrinsicLabLoRAMap";
const FIND = "IntrinsicLabFindSimilarLoRAs";
const INDEX = "IntrinsicLabIndexLoRAs";
const NONE = "none";
const REACH = 14; // Screen pixels within which a dot counts as pointed at.
const EDGE = 12;

function widgetOf(node, name) {
    return node.widgets?.find((widget) => widget.name === name);
}

function setWidget(node, name, value) {
    const widget = widgetOf(node, name);
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
}

function previewUrl(name) {
    return api.apiURL(`/intrinsic_lab/lora_preview?${new URLSearchParams({ name })}`);
}

// Search nodes that are fed by the same index as `node`.
function searchesBeside(node) {
    const source = (one) => {
        const slot = one.inputs?.findIndex((input) => input.name === "lora_index") ?? -1;
        return slot < 0 ? null : one.getInputNode(slot);
    };
    const index = source(node);
    return index ? node.graph._nodes.filter((other) => other.comfyClass === FIND && source(other) === index) : [];
}

function choose(node, name) {
    setWidget(node, "selected", name);
    for (const search of searchesBeside(node)) setWidget(search, "query", name);
    node.graph.setDirtyCanvas(true, true);
}

class MapView {
    constructor(node) {
        this.node = node;
        this.map = null;
        this.hovered = null;
        this.element = document.createElement("div");
        this.element.style.cssText = "position: relative; width: 100%; height: 100%; background: #1e1e22; overflow: hidden;";
        this.canvas = document.createElement("canvas");
        this.canvas.className = "intrinsic-lab-lora-map";
        this.canvas.style.cssText = "position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair;";
        this.card = document.createElement("div");
        this.card.className = "intrinsic-lab-lora-card";
        this.card.style.cssText =
            "position: absolute; display: none; pointer-events: none; max-width: 150px; padding: 4px; border-radius: 4px; " +
            "background: #000c; color: #fff; font: 11px sans-serif; overflow-wrap: anywhere; z-index: 1;";
        this.picture = document.createElement("img");
        this.picture.style.cssText = "display: none; width: 128px; max-height: 160px; object-fit: contain; margin-bottom: 4px;";
        // A LoRA without a picture beside it shows its name alone.
        this.picture.addEventListener("load", () => (this.picture.style.display = "block"));
        this.picture.addEventListener("error", () => (this.picture.style.display = "none"));
        this.label = document.createElement("div");
        this.card.append(this.picture, this.label);
        this.element.append(this.canvas, this.card);
        this.canvas.addEventListener("pointermove", (event) => this.point(event));
        this.canvas.addEventListener("pointerleave", () => this.show(null));
        this.canvas.addEventListener("click", (event) => {
            this.point(event);
            if (this.hovered) choose(this.node, this.hovered.name);
            this.draw();
        });
        this.observer = new ResizeObserver(() => this.draw());
        this.observer.observe(this.element);
    }

    setMap(map) {
        this.map = map;
        this.show(null);
        this.draw();
    }

    place(point) {
        const { clientWidth: width, clientHeight: height } = this.canvas;
        return [EDGE + point.x * (width - 2 * EDGE), EDGE + point.y * (height - 2 * EDGE)];
    }

    point(event) {
        if (!this.map) return;
        // The node may be zoomed: the event is in screen pixels, the drawing in the element's own.
        const box = this.canvas.getBoundingClientRect();
        const scale = this.canvas.clientWidth / box.width || 1;
        const x = (event.clientX - box.left) * scale;
        const y = (event.clientY - box.top) * scale;
        let nearest = null;
        let best = REACH * scale;
        for (const point of this.map.points) {
            const [px, py] = this.place(point);
            const distance = Math.hypot(px - x, py - y);
            if (distance < best) [nearest, best] = [point, distance];
        }
        if (nearest !== this.hovered) this.show(nearest);
    }

    show(point) {
        this.hovered = point;
        this.card.style.display = point ? "block" : "none";
        if (point) {
            const [x, y] = this.place(point);
            const { clientWidth: width, clientHeight: height } = this.canvas;
            this.label.textContent = `${point.name} (${this.map.clusters[point.cluster]?.label ?? ""})`;
            this.picture.style.display = "none";
            this.picture.src = previewUrl(point.name);
            Object.assign(this.card.style, x < width / 2 ? { left: `${x + 12}px`, right: "" } : { left: "", right: `${width - x + 12}px` });
            Object.assign(this.card.style, y < height / 2 ? { top: `${y}px`, bottom: "" } : { top: "", bottom: `${height - y}px` });
        }
        this.draw();
    }

    draw() {
        const { clientWidth: width, clientHeight: height } = this.canvas;
        if (!width || !height) return;
        const ratio = window.devicePixelRatio || 1;
        Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
        const context = this.canvas.getContext("2d");
        context.scale(ratio, ratio);
        this.canvas.dataset.points = this.map?.points.length ?? 0;
        if (!this.map) {
            context.fillStyle = "#a8a8b0";
            context.font = "13px sans-serif";
            context.fillText("Run the graph to draw the map.", EDGE, 2 * EDGE);
            return;
        }
        const selected = widgetOf(this.node, "selected")?.value;
        for (const point of this.map.points) {
            const [x, y] = this.place(point);
            const chosen = point.name === selected;
            context.beginPath();
            context.arc(x, y, chosen || point === this.hovered ? 7 : 4, 0, 2 * Math.PI);
            context.fillStyle = this.map.clusters[point.cluster]?.color ?? "#888";
            context.fill();
            if (chosen) {
                context.lineWidth = 2;
                context.strokeStyle = "#fff";
                context.stroke();
            }
        }
        context.font = "bold 12px sans-serif";
        context.textAlign = "center";
        for (const cluster of this.map.clusters) {
            const [x, y] = this.place(cluster);
            const half = context.measureText(cluster.label).width / 2;
            const inside = Math.min(Math.max(x, half + 2), width - half - 2);
            context.lineWidth = 3;
            context.strokeStyle = "#1e1e22";
            context.strokeText(cluster.label, inside, y - 10);
            context.fillStyle = "#f0f0f0";
            context.fillText(cluster.label, inside, y - 10);
        }
    }
}

// Adds the two nodes of a search for what a loader holds, below it, and wires them.
function findSimilar(loader, widget) {
    const graph = loader.graph;
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        node.pos = [loader.pos[0] + x, loader.pos[1] + loader.size[1] + 60 + y];
        graph.add(node);
        return node;
    };
    const index = add(INDEX, 0, 0);
    const search = add(FIND, index.size[0] + 40, 0);
    index.connect(0, search, search.findInputSlot("lora_index"));
    setWidget(search, "query", widget.value);
    app.canvas.selectItems([index, search]);
    graph.setDirtyCanvas(true, true);
    return search;
}

// A loader is any node with a combo of LoRA files: core's, this pack's, other packs'.
function loraWidget(node) {
    if ([MAP, FIND].includes(node.comfyClass)) return null;
    const widget = node.widgets?.find((one) => one.type === "combo" && /^lora(_name)?(_\d+)?$/.test(one.name));
    return widget && widget.value && widget.value !== NONE ? widget : null;
}

app.registerExtension({
    name: "intrinsic_lab.lora_space",
    nodeCreated(node) {
        if (node.comfyClass !== MAP) return;
        const view = new MapView(node);
        node.loraMap = view;
        node.addDOMWidget("lora_map", "map", view.element, { serialize: false, getMinHeight: () => 280 });
        const executed = node.onExecuted;
        node.onExecuted = function (output) {
            executed?.call(this, output);
            if (output?.lora_map?.[0]) view.setMap(output.lora_map[0]);
        };
        const selected = widgetOf(node, "selected");
        const callback = selected.callback;
        selected.callback = function (...args) {
            callback?.apply(this, args);
            view.draw();
        };
        const removed = node.onRemoved;
        node.onRemoved = function () {
            view.observer.disconnect();
            removed?.call(this);
        };
    },
    getNodeMenuItems(node) {
        const widget = loraWidget(node);
        return widget ? [{ content: "Find similar LoRAs", callback: () => findSimilar(node, widget) }] : [];
    },
});
