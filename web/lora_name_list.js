// The LoRAs in a lasso, as a list: copied, chosen one by one, or dragged onto the graph.

import { copy, make, makeDraggable } from "./loras.js";
import { t } from "./texts.js";

export class NameList {
    // choose: called with a name that was clicked; clear: when the list shall be emptied.
    constructor({ choose, clear }) {
        Object.assign(this, { choose, names: [] });
        this.count = make("b", "");
        const button = (className, text, title, act) => {
            const made = make("button", className, text);
            made.title = title;
            if (act) made.addEventListener("click", act);
            return made;
        };
        const copyAll = button("intrinsic-lab-copy", t("copy"), t("The names, one a line"), () => copy(this.names.join("\n")));
        const drag = button("intrinsic-lab-drag", t("drag onto the graph"), t("Makes a loader for each"));
        makeDraggable(drag, () => this.names);
        this.head = make("div", "intrinsic-lab-bar", "", this.count, copyAll, drag, button("", "✕", t("Empty the list"), clear));
        this.element = make("div", "intrinsic-lab-list");
    }

    show(names) {
        this.names = names;
        this.count.textContent = t("{count} listed", { count: names.length.toLocaleString() });
        const rows = names.map((name) => {
            const row = make("div", "intrinsic-lab-listed", name);
            row.addEventListener("click", () => this.choose(name));
            makeDraggable(row, () => [name]);
            return row;
        });
        this.element.replaceChildren(...(names.length ? [this.head, ...rows] : []));
    }
}
