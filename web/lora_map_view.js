// The LoRA map inside its node: wheel zooms, drag pans, a click chooses, a lasso lists; pictures where there is room for them.

import { Dots } from "./lora_dots.js";
import { NameList } from "./lora_name_list.js";
import { Pictures } from "./lora_pictures.js";
import { COLORINGS, css, Points } from "./lora_points.js";
import { make, previewUrl } from "./loras.js";
import { t } from "./texts.js";

const REACH = 14; // Screen pixels within which a dot counts as pointed at.
const EDGE = 12;
const CLICK = 4; // Screen pixels that a click may slip.
const MOST_ZOOM = 400;
// Pictures are shown from this zoom on, where at most so many dots are in sight.
const [PICTURES_FROM, MOST_PICTURES] = [2, 60];
const MOST_LEGEND = 8;

export class MapView {
    // choose: called with the name of a clicked LoRA. list: with the names of those in the lasso.
    constructor({ choose, list, selected }) {
        Object.assign(this, { choose, list, selected, map: null, points: null, hovered: -1, listed: [], lasso: null, lassoing: false });
        Object.assign(this, { zoom: 1, x: 0, y: 0, found: null, bright: null });
        this.pictures = new Pictures(() => this.redraw());
        this.canvas = make("canvas", "intrinsic-lab-lora-map");
        this.context = this.canvas.getContext("2d", { willReadFrequently: true });
        this.picture = make("img", "");
        // A LoRA without a picture beside it shows its name alone.
        this.picture.addEventListener("load", () => (this.picture.style.display = "block"));
        this.picture.addEventListener("error", () => (this.picture.style.display = "none"));
        this.label = make("div", "");
        this.card = make("div", "intrinsic-lab-lora-card", "", this.picture, this.label);
        this.legend = make("div", "intrinsic-lab-legend");
        this.stage = make("div", "intrinsic-lab-stage", "", this.canvas, this.legend, this.card);
        this.names = new NameList({ choose, clear: () => (this.setListed([]), list([])) });
        this.element = make("div", "intrinsic-lab-map", "", this.bar(), this.stage, this.names.element);
        this.listen();
    }

    bar() {
        this.search = make("input", "intrinsic-lab-search");
        Object.assign(this.search, { type: "search", placeholder: t("Search names, groups, bases") });
        this.search.addEventListener("input", () => this.look());
        this.search.addEventListener("keydown", (event) => event.key === "Enter" && this.found?.length && this.fit(this.found));
        this.colors = make("select", "intrinsic-lab-colors");
        this.colors.title = t("What the colours tell apart");
        for (const name of Object.keys(COLORINGS)) this.colors.append(new Option(t(name), name));
        this.colors.addEventListener("change", () => this.color());
        this.lassoButton = make("button", "intrinsic-lab-lasso", t("lasso"));
        this.lassoButton.title = t("Draw around LoRAs to list them (or Shift + drag)");
        this.lassoButton.addEventListener("click", () => this.setLassoing(!this.lassoing));
        const all = make("button", "intrinsic-lab-all", t("all"));
        all.title = t("The whole map (or double-click)");
        all.addEventListener("click", () => this.fit());
        this.count = make("span", "intrinsic-lab-count");
        return make("div", "intrinsic-lab-bar", "", this.search, this.count, this.colors, this.lassoButton, all);
    }

    listen() {
        const { canvas } = this;
        canvas.addEventListener("pointerdown", (event) => this.grab(event));
        canvas.addEventListener("pointermove", (event) => (this.grabbed ? this.drag(event) : this.point(event)));
        for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.drop(event));
        canvas.addEventListener("pointerleave", () => this.show(-1));
        canvas.addEventListener("dblclick", (event) => (event.stopPropagation(), this.fit()));
        canvas.addEventListener("wheel", (event) => this.turn(event), { passive: false });
        // Else the node moves; the middle button moves the graph as everywhere.
        this.element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
        // Nodes 2.0 leaves the wheel to what has the focus.
        this.element.dataset.captureWheel = "true";
        this.element.tabIndex = -1;
        canvas.addEventListener("pointerenter", () => {
            if (!document.activeElement?.matches("input, textarea, [contenteditable]")) this.element.focus({ preventScroll: true });
        });
        // Another size, another theme.
        this.observers = [new ResizeObserver(() => this.redraw()), new MutationObserver(() => this.redraw())];
        this.observers[0].observe(this.stage);
        this.observers[1].observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
    }

    close() {
        for (const observer of this.observers) observer.disconnect();
    }

    setMap(map) {
        this.map = map;
        this.points = new Points(map.points, map.clusters);
        this.color();
        this.look();
        this.show(-1);
        this.fit();
    }

    // Where things are. A place of the map, 0..1, is at left + x * wide, top + y * high of the element's own pixels.

    get frame() {
        const { clientWidth: width, clientHeight: height } = this.canvas;
        const [wide, high] = [(width - 2 * EDGE) * this.zoom, (height - 2 * EDGE) * this.zoom];
        return { left: EDGE - this.x * wide, top: EDGE - this.y * high, wide, high };
    }

    place({ x, y }) {
        const { left, top, wide, high } = this.frame;
        return [left + x * wide, top + y * high];
    }

    // The event is in screen pixels, and the node may be zoomed: [x, y] in the element's pixels, and of those a screen pixel has.
    under(event) {
        const box = this.canvas.getBoundingClientRect();
        const scale = this.canvas.clientWidth / box.width || 1;
        return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, scale];
    }

    onMap([x, y]) {
        const { left, top, wide, high } = this.frame;
        return [(x - left) / wide, (y - top) / high];
    }

    // The whole map, or the part with these.
    fit(numbers = null) {
        Object.assign(this, { zoom: 1, x: 0, y: 0 });
        if (numbers) {
            const bounds = [this.points.x, this.points.y].map((values) => {
                const own = numbers.map((number) => values[number]);
                return own.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [1, 0]);
            });
            const span = Math.max(...bounds.map(([low, high]) => high - low), 0.02) * 1.2;
            this.zoom = Math.max(1, 1 / span);
            [this.x, this.y] = bounds.map(([low, high]) => (low + high) / 2 - 0.5 / this.zoom);
        }
        this.keepInSight();
        this.redraw();
    }

    keepInSight() {
        const most = 1 - 1 / this.zoom;
        [this.x, this.y] = [this.x, this.y].map((value) => Math.min(most, Math.max(0, value)));
    }

    // Hands.

    turn(event) {
        if (!this.map) return;
        // Else the graph zooms.
        event.stopPropagation();
        event.preventDefault();
        const at = this.under(event);
        const [x, y] = this.onMap(at);
        this.zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * Math.exp(-event.deltaY / 400)));
        const { wide, high } = this.frame;
        [this.x, this.y] = [x - (at[0] - EDGE) / wide, y - (at[1] - EDGE) / high];
        this.keepInSight();
        this.show(-1);
        this.redraw();
    }

    grab(event) {
        if (event.button !== 0 || !this.map) return;
        event.preventDefault();
        this.point(event);
        this.canvas.setPointerCapture(event.pointerId);
        const at = this.under(event);
        this.grabbed = { at, from: [this.x, this.y], moved: false };
        if (this.lassoing || event.shiftKey) this.lasso = [at];
    }

    drag(event) {
        const at = this.under(event);
        const [dx, dy] = [at[0] - this.grabbed.at[0], at[1] - this.grabbed.at[1]];
        this.grabbed.moved ||= Math.hypot(dx, dy) > CLICK * at[2];
        if (!this.grabbed.moved) return;
        if (this.lasso) {
            this.lasso.push(at);
        } else {
            const { wide, high } = this.frame;
            [this.x, this.y] = [this.grabbed.from[0] - dx / wide, this.grabbed.from[1] - dy / high];
            this.keepInSight();
        }
        this.show(-1);
    }

    drop(event) {
        const { grabbed, lasso } = this;
        [this.grabbed, this.lasso] = [null, null];
        if (!grabbed || event.type === "pointercancel") return this.redraw();
        if (grabbed.moved && lasso) {
            this.setLassoing(false);
            const numbers = this.points.inside(lasso.map((at) => this.onMap(at)));
            this.setListed(numbers.map((number) => this.points.all[number].name));
            this.list(this.listed);
        } else if (!grabbed.moved && this.hovered >= 0) {
            this.choose(this.points.all[this.hovered].name);
        }
        this.redraw();
    }

    point(event) {
        if (!this.map) return;
        const [x, y, scale] = this.under(event);
        const { wide, high } = this.frame;
        const nearest = this.points.nearest(...this.onMap([x, y]), (REACH * scale) / wide, (REACH * scale) / high);
        if (nearest !== this.hovered) this.show(nearest);
    }

    setLassoing(on) {
        this.lassoing = on;
        this.lassoButton.setAttribute("aria-pressed", on);
    }

    // What is shown.

    look() {
        const text = this.search.value.trim();
        this.found = text && this.points ? this.points.matching(text) : null;
        this.count.textContent = this.found ? this.found.length.toLocaleString() : "";
        this.light();
    }

    // The found ones, else the listed ones, stand out.
    light() {
        const names = new Set(this.listed);
        const numbers = this.found ?? (names.size ? this.points?.all.flatMap(({ name }, number) => (names.has(name) ? [number] : [])) : null);
        this.bright = numbers?.length || this.found ? new Uint8Array(this.points.length) : null;
        for (const number of numbers ?? []) if (this.bright) this.bright[number] = 1;
        this.redraw();
    }

    color() {
        if (!this.points) return;
        const { colors, legend } = this.points.colored(this.colors.value);
        this.shades = colors;
        const rows = legend.slice(0, MOST_LEGEND).map(([label, color, many]) => {
            const dot = make("span", "", "● ");
            dot.style.color = css(color);
            return make("div", "", "", dot, many === null ? label : `${label}  ${many.toLocaleString()}`);
        });
        if (legend.length > MOST_LEGEND) rows.push(make("div", "", t("and {count} more", { count: legend.length - MOST_LEGEND })));
        this.legend.replaceChildren(...rows);
        this.legend.style.display = rows.length ? "block" : "none";
        this.redraw();
    }

    setListed(names) {
        this.listed = names;
        this.names.show(names);
        this.light();
    }

    show(number) {
        this.hovered = number;
        const point = this.points?.all[number];
        this.card.style.display = point ? "block" : "none";
        if (point) {
            const [x, y] = this.place(point);
            const { clientWidth: width, clientHeight: height } = this.canvas;
            const about = [this.map.clusters[point.cluster]?.label, point.variant, point.date].filter(Boolean).join(", ");
            this.label.textContent = `${point.name} (${about})`;
            this.picture.style.display = "none";
            this.picture.src = previewUrl(point.name);
            Object.assign(this.card.style, x < width / 2 ? { left: `${x + 12}px`, right: "" } : { left: "", right: `${width - x + 12}px` });
            Object.assign(this.card.style, y < height / 2 ? { top: `${y}px`, bottom: "" } : { top: "", bottom: `${height - y}px` });
        }
        this.redraw();
    }

    redraw() {
        this.waiting ??= requestAnimationFrame(() => {
            this.waiting = null;
            this.draw();
        });
    }

    draw() {
        const { canvas, context } = this;
        const { clientWidth: width, clientHeight: height } = canvas;
        if (!width || !height) return;
        const ratio = window.devicePixelRatio || 1;
        const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
        if (canvas.width !== wide || canvas.height !== high || !this.dots) {
            Object.assign(canvas, { width: wide, height: high });
            this.dots = new Dots(context);
        }
        canvas.dataset.points = this.points?.length ?? 0;
        const look = getComputedStyle(this.stage);
        const [ground, ink] = [look.backgroundColor, look.color].map((color) => color.match(/[\d.]+/g).slice(0, 3).map(Number));
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        if (!this.points) {
            context.clearRect(0, 0, width, height);
            context.fillStyle = css(ink);
            context.font = "13px sans-serif";
            context.textAlign = "left";
            context.fillText(t("Run the graph to draw the map."), EDGE, 2 * EDGE);
            return;
        }
        const { frame } = this;
        const radius = Math.min(6, (this.points.length > 3000 ? 1.6 : 4) * this.zoom ** 0.3);
        const scaled = Object.fromEntries(Object.entries(frame).map(([name, value]) => [name, value * ratio]));
        this.dots.draw(this.points, scaled, radius * ratio, this.shades, this.bright, ground);
        this.drawPictures(width, height, ink);
        this.drawMarks(radius);
        if (this.colors.value === "groups") this.drawNames(width, ground, ink);
        if (this.lasso) this.drawLasso(ink);
    }

    // The dots in sight, where there are few enough to show their pictures.
    drawPictures(width, height, ink) {
        const seen = [];
        if (this.zoom >= PICTURES_FROM) {
            this.points.within([...this.onMap([0, 0]), ...this.onMap([width, height])], (number) => seen.push(number) <= MOST_PICTURES);
        }
        const shown = seen.length > MOST_PICTURES ? [] : seen;
        const drawn = this.pictures.draw(
            this.context,
            shown.map((number) => {
                const point = this.points.all[number];
                const faint = this.bright && !this.bright[number];
                return { name: point.name, at: this.place(point), color: css(this.shades[number]), ink: css(ink), alpha: faint ? 0.25 : 1 };
            }),
        );
        this.canvas.dataset.pictures = drawn;
    }

    drawMarks(radius) {
        const { context } = this;
        const selected = this.selected();
        const chosen = this.points.all.findIndex((point) => point.name === selected);
        for (const number of [this.hovered, chosen]) {
            if (number < 0) continue;
            context.beginPath();
            context.arc(...this.place(this.points.all[number]), radius + 3, 0, 2 * Math.PI);
            context.fillStyle = css(this.shades[number]);
            context.fill();
            if (number !== chosen) continue;
            // White in black is seen on both grounds.
            for (const [wide, color] of [[4, "#000"], [2, "#fff"]]) Object.assign(context, { lineWidth: wide, strokeStyle: color }), context.stroke();
        }
    }

    drawNames(width, ground, ink) {
        const { context } = this;
        context.font = "bold 12px sans-serif";
        context.textAlign = "center";
        for (const cluster of this.map.clusters) {
            const [x, y] = this.place(cluster);
            const half = context.measureText(cluster.label).width / 2;
            const inside = this.zoom > 1 ? x : Math.min(Math.max(x, half + 2), width - half - 2);
            context.lineWidth = 3;
            context.strokeStyle = css(ground);
            context.strokeText(cluster.label, inside, y - 10);
            context.fillStyle = css(ink);
            context.fillText(cluster.label, inside, y - 10);
        }
    }

    drawLasso(ink) {
        const { context } = this;
        context.beginPath();
        for (const [x, y] of this.lasso) context.lineTo(x, y);
        context.closePath();
        context.setLineDash([4, 3]);
        context.lineWidth = 1.5;
        context.strokeStyle = css(ink);
        context.stroke();
        context.setLineDash([]);
    }
}
