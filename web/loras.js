// LoRAs in the graph and on the server: which inputs hold one, how a loader gets another, what the server says of them.

import { app } from "../../scripts/app.js";
import { t } from "./texts.js";

const FILE = /\.(safetensors|sft|pt2?|pth|bin|ckpt|pkl)$/i;
const VALUE = /\.(safetensors|sft|pt2?|pth|bin|ckpt|pkl)( \(bundled\))?$/i;
const NAME = /^lora(_?\d+)?(_name)?(_?\d+)?$/i;
const DRAGGED = "application/x-intrinsic-lab-loras";

export function widgetOf(node, name) {
    return node.widgets?.find((widget) => widget.name === name);
}

export function setWidget(node, widget, value) {
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    node.graph?.setDirtyCanvas(true, true);
}

// All that the server offers for a list of a kind of node.
export function offered(type, input) {
    const spec = LiteGraph.registered_node_types[type]?.nodeData?.input?.required?.[input] ?? [];
    return Array.isArray(spec[0]) ? spec[0] : (spec[1]?.options ?? []);
}

// The files of models/loras, as core's loader lists them.
function loraFiles() {
    return new Set(offered("LoraLoader", "lora_name"));
}

function valuesOf(widget, node) {
    const values = widget.options?.values ?? [];
    return Object.values(typeof values === "function" ? values(widget, node) : values);
}

// The file in a widget: its value, or, in lists that packs draw themselves, what they call lora there.
export function loraIn(widget) {
    const value = typeof widget.value === "string" ? widget.value : widget.value?.lora;
    return typeof value === "string" && VALUE.test(value) ? value : null;
}

export function setLora(node, widget, name) {
    setWidget(node, widget, typeof widget.value === "string" ? name : { ...widget.value, lora: name });
}

// The widgets of a node that hold a LoRA, whoever wrote it: their list is that of models/loras, or their name says it.
export function loraInputs(node) {
    const listed = loraFiles();
    return (node.widgets ?? []).filter((widget) => {
        if (!loraIn(widget)) return false;
        if (typeof widget.value === "object") return true;
        if (widget.type !== "combo") return false;
        const files = valuesOf(widget, node).filter((value) => FILE.test(value));
        return NAME.test(widget.name) || (files.length > 0 && files.every((file) => listed.has(file)));
    });
}

export function tell(detail, severity = "info") {
    app.extensionManager.toast.add({ severity, summary: "LoRAs", detail, life: 6000 });
}

export async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
        tell(t("Copied."));
    } catch {
        // Pages over plain HTTP may not.
        tell(text);
    }
}

// A loader of the kind `like` (else core's) for each name, at a place of the graph.
function addLoaders(names, [x, y], like) {
    const listed = loraFiles();
    const missing = names.filter((name) => !listed.has(name));
    if (missing.length) tell(t("Not in models/loras, as Load LoRA lists it (R looks again): {names}.", { names: missing.slice(0, 3).join(", ") }), "warn");
    const made = names
        .filter((name) => listed.has(name))
        .map((name, number) => {
            const node = LiteGraph.createNode(like ?? "LoraLoader");
            node.pos = [x + 30 * number, y + (node.size[1] + 50) * number];
            app.canvas.graph.add(node);
            const widget = node.widgets.find((one) => one.type === "combo" && valuesOf(one, node).includes(name));
            setWidget(node, widget, name);
            return node;
        });
    if (made.length) app.canvas.selectItems(made);
}

// Makes an element that can be dragged onto the graph, where it becomes loaders. names, like: functions, asked when it is dropped.
export function makeDraggable(element, names, like = () => null) {
    element.draggable = true;
    const onGraph = (event) => event.target === app.canvas.canvas || !!event.target.closest?.("[data-node-id]");
    const over = (event) => {
        if (!onGraph(event)) return;
        event.preventDefault();
        event.dataTransfer.dropEffect = "copy";
    };
    const drop = (event) => {
        if (!onGraph(event)) return;
        // Else the front end looks for a file in it.
        event.preventDefault();
        event.stopPropagation();
        addLoaders(names(), app.canvas.convertEventToCanvasOffset(event), like());
    };
    element.addEventListener("dragstart", (event) => {
        event.stopPropagation();
        event.dataTransfer.effectAllowed = "copy";
        event.dataTransfer.setData(DRAGGED, "");
        event.dataTransfer.setData("text/plain", names().join("\n"));
        document.addEventListener("dragover", over, true);
        document.addEventListener("drop", drop, true);
    });
    element.addEventListener("dragend", () => {
        document.removeEventListener("dragover", over, true);
        document.removeEventListener("drop", drop, true);
    });
}

export function previewUrl(name) {
    return app.api.apiURL(`/intrinsic_lab/lora_preview?${new URLSearchParams({ name })}`);
}

// What an address of the pack answers; an error in words where it does not.
export async function ask(address, options) {
    const answer = await app.api.fetchApi(`/intrinsic_lab/${address}`, options);
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.message ?? t("The server answers {status}.", { status: answer.status }));
    return said;
}

// Texts are strangers': they only ever become text.
export function make(tag, className, text = "", ...children) {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    element.append(...children);
    return element;
}

// A preview picture; LoRAs without one have an empty place.
export function makePicture(className, name) {
    const picture = make("img", className);
    picture.draggable = false;
    picture.alt = "";
    picture.addEventListener("error", () => (picture.style.visibility = "hidden"));
    picture.src = previewUrl(name);
    return picture;
}
