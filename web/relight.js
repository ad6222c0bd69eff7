// Relight from Maps shows its picture and relights it while lamps are dragged over it; nothing has to run for that.

import { app } from "../../scripts/app.js";
import { after } from "./hooks.js";
import { linearColor, MOST_LAMPS, Relit } from "./relight_gl.js";

const NODE = "IntrinsicLabRelight";
const BY_HAND = "by hand";
const DIRECTIONAL = "directional";
const NEW_LAMP = { x: 0.5, y: 0.3, height: 0.6, color: "#ffffff", intensity: 1, reach: 1 };
// While a lamp is dragged, a slow machine draws fewer pixels: so many times fewer in a row, at most.
const COARSEST = 8;
const [SLOW, FAST] = [40, 8]; // milliseconds a frame
const REACH = 24; // Screen pixels within which a lamp counts as touched.
const HINTS = {
    [BY_HAND]: "drag: move · wheel: height · Shift + wheel: intensity · double-click: another lamp · Delete: remove · B: before",
    [DIRECTIONAL]: "drag: where the light comes from · B: before",
};
const RUN_FIRST = "Run the graph once; then relight here.";
const LINKED = "The lamps come over a link: the picture shows them as they last ran.";

function style(element, css) {
    element.style.cssText = css;
    return element;
}

function lampsOf(text) {
    try {
        const content = JSON.parse(text);
        const frame = content.every(Array.isArray) && content.length ? content[0] : content;
        return frame.slice(0, MOST_LAMPS).map((lamp) => ({ ...NEW_LAMP, ...lamp }));
    } catch {
        return null;
    }
}

class RelightView {
    constructor(node) {
        this.node = node;
        this.selected = 0;
        this.before = false;
        this.coarse = 1;
        this.ran = null;
        this.element = style(document.createElement("div"), "display: flex; flex-direction: column; width: 100%; height: 100%; outline: none;");
        this.element.tabIndex = 0;
        // Nodes 2.0 leaves the wheel to what has the focus.
        this.element.dataset.captureWheel = "true";
        this.stage = style(document.createElement("div"), "position: relative; flex: 1 1 0; min-height: 0; touch-action: none; cursor: crosshair;");
        this.canvas = style(document.createElement("canvas"), "position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain;");
        this.canvas.className = "intrinsic-lab-relight";
        this.handles = style(document.createElement("div"), "position: absolute; inset: 0; pointer-events: none; overflow: hidden;");
        this.stage.append(this.canvas, this.handles);
        const foot = style(document.createElement("div"), "display: flex; gap: 6px; align-items: center; flex: none; min-height: 18px;");
        this.color = style(document.createElement("input"), "display: none; width: 26px; height: 16px; padding: 0; border: none; flex: none;");
        this.color.type = "color";
        this.color.title = "Colour of the chosen lamp";
        this.hint = style(document.createElement("small"), "font: 10px sans-serif; opacity: 0.75;");
        this.hint.textContent = RUN_FIRST;
        foot.append(this.color, this.hint);
        this.element.append(this.stage, foot);
        this.listen();
    }

    listen() {
        const { stage, element } = this;
        stage.addEventListener("pointerdown", (event) => this.grab(event));
        stage.addEventListener("pointermove", (event) => this.dragging && this.drag(event));
        for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => this.drop());
        stage.addEventListener("pointerenter", () => element.focus({ preventScroll: true }));
        stage.addEventListener("pointerleave", () => this.setBefore(false));
        stage.addEventListener("dblclick", (event) => this.add(event));
        stage.addEventListener("wheel", (event) => this.turn(event), { passive: false });
        element.addEventListener("keydown", (event) => this.key(event, true));
        element.addEventListener("keyup", (event) => this.key(event, false));
        this.color.addEventListener("input", () => this.change((lamp) => ({ ...lamp, color: this.color.value })));
    }

    widget(name) {
        return this.node.widgets?.find((widget) => widget.name === name || widget.name === `light.${name}`);
    }

    value(name, otherwise) {
        return this.widget(name)?.value ?? otherwise;
    }

    get kind() {
        return this.value("light", BY_HAND);
    }

    // A widget with a wire does not hold its value.
    get linked() {
        const lamps = (input) => /(^|\.)lamps$/.test(input.widget?.name ?? input.name);
        return this.node.inputs?.some((input, index) => lamps(input) && this.node.isInputConnected(index));
    }

    get lamps() {
        return lampsOf(this.linked ? (this.ran?.lamps ?? "[]") : this.value("lamps", "[]")) ?? [];
    }

    set(name, value) {
        const widget = this.widget(name);
        if (!widget || widget.value === value) return;
        widget.value = value;
        widget.callback?.(value, app.canvas, this.node);
    }

    write(lamps) {
        const short = (number) => Math.round(number * 1000) / 1000;
        const rounded = lamps.map((lamp) => Object.fromEntries(Object.entries(lamp).map(([key, of]) => [key, typeof of === "number" ? short(of) : of])));
        this.set("lamps", JSON.stringify(rounded));
        this.node.graph?.setDirtyCanvas?.(true, true);
        this.redraw();
    }

    change(how) {
        const lamps = this.lamps;
        if (this.linked || !lamps[this.selected]) return;
        lamps[this.selected] = how(lamps[this.selected]);
        this.write(lamps);
    }

    // Shares of the picture's width and height under the pointer, and of one screen pixel.
    under(event) {
        const box = this.canvas.getBoundingClientRect();
        const { width, height } = this.canvas;
        const scale = Math.min(box.width / width, box.height / height) || 1;
        const [left, top] = [box.left + (box.width - width * scale) / 2, box.top + (box.height - height * scale) / 2];
        return { x: (event.clientX - left) / (width * scale), y: (event.clientY - top) / (height * scale), wide: width * scale, high: height * scale };
    }

    grab(event) {
        if (event.button !== 0 || !this.relit?.maps) return;
        // Else the node moves.
        event.stopPropagation();
        event.preventDefault();
        this.element.focus({ preventScroll: true });
        const at = this.under(event);
        if (this.kind === BY_HAND && !this.linked) {
            let nearest = REACH;
            this.lamps.forEach((lamp, index) => {
                const distance = Math.hypot((lamp.x - at.x) * at.wide, (lamp.y - at.y) * at.high);
                if (distance < nearest) [nearest, this.selected] = [distance, index];
            });
        }
        this.dragging = true;
        this.stage.setPointerCapture(event.pointerId);
        this.drag(event);
    }

    drag(event) {
        event.stopPropagation();
        const at = this.under(event);
        if (this.kind === BY_HAND) {
            this.change((lamp) => ({ ...lamp, x: Math.min(5, Math.max(-4, at.x)), y: Math.min(5, Math.max(-4, at.y)) }));
        } else if (this.kind === DIRECTIONAL) {
            const clamp = (number) => Math.min(1, Math.max(-1, number));
            this.set("azimuth", Math.round(clamp(2 * at.x - 1) * 90));
            this.set("elevation", Math.round(clamp(1 - 2 * at.y) * 90));
            this.redraw();
        }
    }

    drop() {
        this.dragging = false;
        this.redraw();
    }

    add(event) {
        event.stopPropagation();
        const lamps = this.lamps;
        if (this.kind !== BY_HAND || this.linked || lamps.length >= MOST_LAMPS) return;
        const at = this.under(event);
        this.selected = lamps.length;
        this.write([...lamps, { ...NEW_LAMP, x: at.x, y: at.y }]);
    }

    turn(event) {
        if (this.kind !== BY_HAND || !this.relit?.maps) return;
        // Else the graph zooms.
        event.stopPropagation();
        event.preventDefault();
        const way = -(event.deltaY || event.deltaX);
        if (event.shiftKey) {
            this.change((lamp) => ({ ...lamp, intensity: Math.min(1000, Math.max(0, lamp.intensity * Math.exp(way / 500))) }));
        } else {
            this.change((lamp) => ({ ...lamp, height: Math.min(20, Math.max(-2, lamp.height + way / 500)) }));
        }
    }

    key(event, down) {
        const name = event.key.toLowerCase();
        if (name === "b") {
            this.setBefore(down);
        } else if (["delete", "backspace"].includes(name)) {
            const lamps = this.lamps;
            if (down && this.kind === BY_HAND && !this.linked && lamps.length > 1) {
                lamps.splice(this.selected, 1);
                this.selected = Math.max(0, this.selected - 1);
                this.write(lamps);
            }
        } else {
            return;
        }
        // Else the graph loses the node.
        event.stopPropagation();
        event.preventDefault();
    }

    setBefore(before) {
        if (this.before === before) return;
        this.before = before;
        this.redraw();
    }

    async setMaps(ran) {
        this.ran = ran;
        const images = {};
        await Promise.all(
            Object.entries(ran.maps).map(async ([name, file]) => {
                images[name] = new Image();
                images[name].src = app.api.apiURL(`/view?${new URLSearchParams(file)}`);
                await images[name].decode();
            }),
        );
        if (this.ran !== ran) return;
        try {
            this.relit ??= new Relit(this.canvas);
        } catch (error) {
            this.hint.textContent = `${error.message} Queue the graph to see the picture.`;
            return;
        }
        this.relit.setMaps(images, ran);
        this.redraw();
    }

    redraw() {
        if (this.waiting) return;
        this.waiting = true;
        requestAnimationFrame(() => {
            this.waiting = false;
            this.draw();
        });
    }

    light() {
        const color = linearColor(/^#[0-9a-f]{6}$/i.test(this.value("color")) ? this.value("color") : "#ffffff");
        const intensity = this.value("intensity", 1);
        const sun = this.kind === DIRECTIONAL ? { azimuth: this.value("azimuth", 0), elevation: this.value("elevation", 0) } : null;
        return {
            lamps: this.kind === BY_HAND ? this.lamps : [],
            sun,
            color: color.map((share) => share * intensity),
            ambient: this.value("ambient", 0),
            original: this.value("original_light", 0),
            relief: this.value("relief", 0),
            shadows: this.value("shadows", 0),
            hardness: this.value("hardness", 0),
        };
    }

    draw() {
        const lamps = this.kind === BY_HAND ? this.lamps : [];
        this.selected = Math.min(this.selected, Math.max(0, lamps.length - 1));
        if (!this.relit?.maps) return;
        const took = this.relit.draw(this.light(), this.before, this.dragging ? this.coarse : 1);
        if (this.dragging && took > SLOW) this.coarse = Math.min(COARSEST, 2 * this.coarse);
        if (this.dragging && took < FAST) this.coarse = Math.max(1, this.coarse / 2);
        this.hint.textContent = this.linked ? LINKED : (HINTS[this.kind] ?? "Queue the graph: this light is not drawn live.");
        const chosen = lamps[this.selected];
        this.color.style.display = chosen && !this.linked ? "block" : "none";
        if (chosen) this.color.value = chosen.color;
        this.canvas.dataset.lamps = lamps.length;
        const box = this.canvas;
        const scale = Math.min(box.clientWidth / box.width, box.clientHeight / box.height) || 1;
        const [left, top] = [(box.clientWidth - box.width * scale) / 2, (box.clientHeight - box.height * scale) / 2];
        this.handles.replaceChildren(
            ...lamps.map((lamp, index) => {
                const size = 14 + 6 * Math.min(2, Math.max(0, lamp.height));
                const handle = document.createElement("div");
                const ring = index === this.selected ? "2px solid #fff" : "1px solid #fff9";
                return style(
                    handle,
                    `position: absolute; width: ${size}px; height: ${size}px; border-radius: 50%; border: ${ring}; box-shadow: 0 0 4px #000; ` +
                        `background: ${lamp.color}88; left: ${left + lamp.x * box.width * scale - size / 2 - 1}px; ` +
                        `top: ${top + lamp.y * box.height * scale - size / 2 - 1}px;`,
                );
            }),
        );
    }
}

app.registerExtension({
    name: "intrinsiclab.relight",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const view = new RelightView(node);
        node.relightView = view;
        node.addDOMWidget("relight_view", "relight", view.element, { serialize: false, getMinHeight: () => 300 });
        after(node, "onExecuted", (output) => output?.relight?.[0] && view.setMaps(output.relight[0]));
        // The widgets of a kind of light are made anew when a graph opens, and the front end then shrinks the node to its least height.
        after(node, "onConfigure", ({ size }) => requestAnimationFrame(() => size && node.setSize([size[0], Math.max(size[1], node.size[1])])));
        // Widgets that belong to a kind of light come and go with it.
        const watch = () => {
            for (const widget of node.widgets ?? []) {
                if (widget.intrinsicLabWatched || widget.name === "relight_view") continue;
                widget.intrinsicLabWatched = true;
                after(widget, "callback", () => requestAnimationFrame(() => (watch(), view.redraw())));
            }
        };
        for (const event of ["onConfigure", "onConnectionsChange", "onWidgetChanged"]) after(node, event, () => requestAnimationFrame(() => (watch(), view.redraw())));
        watch();
        const observer = new ResizeObserver(() => view.redraw());
        observer.observe(view.stage);
        after(node, "onRemoved", () => observer.disconnect());
    },
});
