// "Find similar": a panel beside a loader with the LoRAs most like its own. Nothing is queued: the server answers from its index.

import { app } from "../../scripts/app.js";
import { ask, copy, loraIn, loraInputs, make, makeDraggable, makePicture, setLora, tell } from "./loras.js";
import { t } from "./texts.js";

const COUNT = 24;
const TAGS = 6;
const POLL = 1000; // Milliseconds.

class SimilarPanel {
    // addNodes: puts the search for a LoRA into the graph as nodes.
    constructor(addNodes) {
        this.addNodes = addNodes;
        this.facts = new Map();
        this.title = make("b", "intrinsic-lab-title");
        this.close = make("button", "", "✕");
        this.close.title = t("Close (Escape)");
        this.status = make("div", "intrinsic-lab-status");
        this.rows = make("div", "intrinsic-lab-rows");
        this.index = make("button", "intrinsic-lab-index");
        this.nodes = make("button", "", t("As nodes"));
        this.nodes.title = t("Adds Index LoRAs and Find Similar LoRAs to the graph: exact scores, other weights that count, several LoRAs at once");
        const head = make("div", "intrinsic-lab-head", "", this.title, this.close);
        this.element = make("div", "intrinsic-lab-panel", "", head, this.status, this.rows, make("div", "intrinsic-lab-foot", "", this.index, this.nodes));
        this.element.tabIndex = -1;
        this.element.setAttribute("role", "region");
        this.close.addEventListener("click", () => this.hide());
        this.index.addEventListener("click", () => this.toggleIndexing());
        this.nodes.addEventListener("click", () => this.addNodes(this.node, this.name));
        for (const event of ["pointerdown", "wheel", "paste", "copy", "keydown"]) this.element.addEventListener(event, (one) => this.keep(one));
        this.moveBy(head);
    }

    // What happens in the panel is none of the graph's business.
    keep(event) {
        if (event.key === "Escape") this.hide();
        event.stopPropagation();
    }

    moveBy(head) {
        head.addEventListener("pointerdown", (event) => {
            if (event.target.closest("button")) return;
            const box = this.element.getBoundingClientRect();
            const [dx, dy] = [event.clientX - box.left, event.clientY - box.top];
            const move = (moved) => this.place(moved.clientX - dx, moved.clientY - dy);
            head.setPointerCapture(event.pointerId);
            head.addEventListener("pointermove", move);
            head.addEventListener("lostpointercapture", () => head.removeEventListener("pointermove", move), { once: true });
        });
    }

    place(left, top) {
        const box = this.element.getBoundingClientRect();
        this.element.style.left = `${Math.max(8, Math.min(left, innerWidth - box.width - 8))}px`;
        this.element.style.top = `${Math.max(8, Math.min(top, innerHeight - box.height - 8))}px`;
    }

    open(node, widget) {
        Object.assign(this, { node, widget, name: loraIn(widget), running: false, ended: "" });
        this.title.textContent = t("Similar to {name}", { name: this.name });
        this.status.textContent = t("Looking …");
        this.rows.replaceChildren();
        this.index.hidden = true;
        document.body.append(this.element);
        const [right, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0], node.pos[1]]);
        const canvas = app.canvas.canvas.getBoundingClientRect();
        this.place(canvas.left + right + 16, canvas.top + top - 30);
        this.element.focus({ preventScroll: true });
        return this.search();
    }

    hide() {
        clearTimeout(this.timer);
        this.name = null;
        this.element.remove();
    }

    async search() {
        clearTimeout(this.timer);
        const name = this.name;
        let found;
        try {
            found = await ask(`similar_loras?${new URLSearchParams({ name, k: COUNT })}`);
        } catch (error) {
            if (name === this.name) this.status.textContent = error.message;
            return;
        }
        if (name !== this.name) return;
        this.found = found;
        this.rows.replaceChildren();
        for (const lora of [found.query, ...found.loras]) if (lora) this.rows.append(this.row(lora));
        this.mark();
        this.showIndexing(found.indexing);
        this.readFacts(name);
        if (found.indexing.running) this.poll();
    }

    row(lora) {
        const score = make("span", "intrinsic-lab-score", lora.score === undefined ? t("this one") : lora.score.toFixed(2));
        const base = t("{base}, {format} of rank {rank}", { ...lora, base: lora.family + (lora.variant ? ` (${lora.variant})` : "") });
        const about = make("div", "intrinsic-lab-about", base);
        const words = make("div", "intrinsic-lab-words");
        const text = make("div", "intrinsic-lab-text", "", make("div", "intrinsic-lab-name", lora.name), about, words);
        const row = make("div", "intrinsic-lab-row", "", makePicture("intrinsic-lab-picture", lora.name), text, score);
        Object.assign(row, { lora, about, words, tabIndex: 0, title: `${lora.name}\n${t("Click: into the loader. Drag onto the graph: another loader.")}` });
        row.setAttribute("role", "button");
        row.addEventListener("click", () => this.choose(lora.name));
        row.addEventListener("keydown", (event) => event.key === "Enter" && this.choose(lora.name));
        makeDraggable(
            row,
            () => [lora.name],
            () => (this.node.outputs?.some((output) => output.type === "MODEL") && loraInputs(this.node).length === 1 ? this.node.type : null),
        );
        return row;
    }

    choose(name) {
        if (!this.node.graph) return tell(t("The loader is gone from the graph; drag a LoRA onto the graph to make another."), "warn");
        setLora(this.node, this.widget, name);
        this.mark();
    }

    // Which row the loader holds.
    mark() {
        for (const row of this.rows.children) row.classList.toggle("intrinsic-lab-chosen", row.lora.name === loraIn(this.widget));
    }

    // One file after the other: what a header says is nice to have, and others want the disk too.
    async readFacts(name) {
        for (const row of [...this.rows.children]) {
            const own = row.lora.name;
            if (!this.facts.has(own)) {
                const facts = await ask(`lora_facts?${new URLSearchParams({ name: own })}`).catch(() => null);
                if (facts) this.facts.set(own, facts);
            }
            if (name !== this.name) return;
            if (this.facts.has(own)) this.showFacts(row, this.facts.get(own));
        }
    }

    showFacts(row, facts) {
        const said = [facts.base, facts.steps && t("{count} steps", { count: facts.steps.toLocaleString() }), facts.resolution, facts.date].filter(Boolean);
        if (said.length) row.about.textContent = [row.about.textContent, ...said].join(" · ");
        const words = [facts.trigger, ...facts.tags.filter((tag) => tag !== facts.trigger)].filter(Boolean).slice(0, TAGS);
        row.words.replaceChildren(
            ...words.map((word) => {
                const chip = make("button", word === facts.trigger ? "intrinsic-lab-trigger" : "", word);
                chip.title = word === facts.trigger ? t("Trigger: a click copies it") : t("Tag of its training captions: a click copies it");
                chip.addEventListener("click", (event) => (event.stopPropagation(), copy(word)));
                return chip;
            }),
        );
    }

    showIndexing({ running, done, total, ending }) {
        const { indexed, message } = this.found;
        // Of the work that was seen, not of one long ago.
        if (running) this.ended = "";
        else if (this.running) this.ended = ending;
        const work = running ? t("Indexing: {done} of {total} files.", { done: done.toLocaleString(), total: total ? total.toLocaleString() : "…" }) : this.ended;
        const about = t("Indexing reads every file once, beside ComfyUI's own work. Nothing is queued, and nothing leaves this machine.");
        const have = indexed ? t("{count} LoRAs in the index.", { count: indexed.toLocaleString() }) : running ? "" : about;
        this.status.textContent = [message, have, work].filter(Boolean).join(" ");
        this.index.textContent = running ? t("Stop indexing") : indexed ? t("Update the index") : t("Index these LoRAs");
        this.index.classList.toggle("intrinsic-lab-main", !indexed && !running);
        this.index.hidden = false;
        this.running = running;
    }

    async toggleIndexing() {
        const body = JSON.stringify({ collection: this.found.collection, stop: this.running });
        try {
            const state = await ask("lora_index", { method: "POST", headers: { "Content-Type": "application/json" }, body });
            // It may be over by now.
            this.running = true;
            this.showIndexing(state);
            this.poll();
        } catch (error) {
            this.status.textContent = error.message;
        }
    }

    poll() {
        clearTimeout(this.timer);
        const name = this.name;
        this.timer = setTimeout(async () => {
            const state = await ask(`lora_index?${new URLSearchParams({ collection: this.found.collection })}`).catch(() => null);
            if (name !== this.name) return;
            if (state && !state.running) return this.search();
            if (state) this.showIndexing(state);
            this.poll();
        }, POLL);
    }
}

let panel = null;

// Entries of a loader's menu: one, or one for each of its LoRAs.
export function similarEntries(node, addNodes) {
    const inputs = loraInputs(node);
    return inputs.map((widget) => ({
        content: inputs.length === 1 ? t("Find similar LoRAs") : `${t("Find similar LoRAs")}: ${loraIn(widget)}`,
        callback: () => {
            panel?.hide();
            // Anew: the language may be another by now.
            panel = new SimilarPanel(addNodes);
            panel.open(node, widget);
        },
    }));
}
