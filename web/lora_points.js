// The LoRAs of a map as numbers in typed arrays: found by place over a grid, by text, by a lasso; coloured by what is known of them.

const CELLS = 128; // A side of the grid over 0..1.
const MOST_COLORS = 40; // Of kinds, the commonest; the others are grey.
const OTHERS = "#8c8c94";
const [OLD, NEW] = [
    [72, 96, 200],
    [250, 214, 84],
];
// How a map may be coloured, and which kind a LoRA is of then.
export const COLORINGS = {
    groups: null,
    folder: (point) => point.name.replaceAll("\\", "/").split("/").slice(0, -1).join("/") || "(no folder)",
    family: (point) => point.family,
    base: (point) => (point.variant ? `${point.family} ${point.variant}` : point.family),
    date: null,
};

// Golden-ratio hues, as Python's map has them: neighbours in the list differ.
function hue(number) {
    const [saturation, value] = [0.55 + 0.25 * (Math.floor(number / 8) % 2), 0.95 - 0.2 * (Math.floor(number / 16) % 2)];
    const sector = ((number * 0.618034) % 1) * 6;
    return [5, 3, 1].map((offset) => {
        const k = (offset + sector) % 6;
        return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
    });
}

export function rgb(color) {
    const number = parseInt(color.slice(1), 16);
    return [number >> 16, (number >> 8) & 255, number & 255];
}

export function css([red, green, blue]) {
    return `rgb(${red}, ${green}, ${blue})`;
}

export class Points {
    // points: [{ name, x, y, cluster, family, variant, date }], x and y in 0..1; clusters: [{ label, color }].
    constructor(points, clusters) {
        this.all = points;
        this.clusters = clusters;
        this.length = points.length;
        this.x = Float32Array.from(points, (point) => point.x);
        this.y = Float32Array.from(points, (point) => point.y);
        this.names = points.map((point) => point.name.toLowerCase());
        this.makeGrid();
    }

    // Members of the cell c: order[starts[c]] to order[starts[c + 1]].
    makeGrid() {
        const cell = (number) => this.cell(this.y[number]) * CELLS + this.cell(this.x[number]);
        this.starts = new Int32Array(CELLS * CELLS + 1);
        for (let number = 0; number < this.length; number++) this.starts[cell(number) + 1]++;
        for (let one = 0; one < CELLS * CELLS; one++) this.starts[one + 1] += this.starts[one];
        const free = this.starts.slice();
        this.order = new Int32Array(this.length);
        for (let number = 0; number < this.length; number++) this.order[free[cell(number)]++] = number;
    }

    cell(share) {
        return Math.max(0, Math.min(CELLS - 1, Math.floor(share * CELLS)));
    }

    // Numbers of those in a rectangle, for `take`, which ends it by returning false.
    within([left, top, right, bottom], take) {
        for (let row = this.cell(top); row <= this.cell(bottom); row++) {
            const [first, last] = [this.starts[row * CELLS + this.cell(left)], this.starts[row * CELLS + this.cell(right) + 1]];
            for (let place = first; place < last; place++) {
                const number = this.order[place];
                const [x, y] = [this.x[number], this.y[number]];
                if (x >= left && x <= right && y >= top && y <= bottom && take(number) === false) return;
            }
        }
    }

    // The number of the nearest one to a place, in an ellipse of these radii around it; -1 if there is none.
    nearest(x, y, reachX, reachY) {
        let [found, best] = [-1, 1];
        this.within([x - reachX, y - reachY, x + reachX, y + reachY], (number) => {
            const distance = Math.hypot((this.x[number] - x) / reachX, (this.y[number] - y) / reachY);
            if (distance < best) [found, best] = [number, distance];
        });
        return found;
    }

    // Numbers of those inside a polygon [[x, y], ...], even-odd.
    inside(polygon) {
        const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
        const found = [];
        this.within([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)], (number) => {
            const [x, y] = [this.x[number], this.y[number]];
            let odd = false;
            for (let here = 0, before = xs.length - 1; here < xs.length; before = here++) {
                if (ys[here] > y !== ys[before] > y && x < ((xs[before] - xs[here]) * (y - ys[here])) / (ys[before] - ys[here]) + xs[here]) odd = !odd;
            }
            if (odd) found.push(number);
        });
        return found;
    }

    // Numbers of those whose name, group or base has all the words of a text.
    matching(text) {
        const words = text.toLowerCase().split(/\s+/).filter(Boolean);
        const about = (point) => `${this.clusters[point.cluster]?.label ?? ""} ${point.family ?? ""} ${point.variant ?? ""}`.toLowerCase();
        const found = [];
        for (let number = 0; number < this.length; number++) {
            const rest = words.filter((word) => !this.names[number].includes(word));
            if (!rest.length || rest.every((word) => about(this.all[number]).includes(word))) found.push(number);
        }
        return found;
    }

    // { colors: [red, green, blue] of each point, legend: [[label, color, how many], ...] }, the commonest first.
    colored(by) {
        if (by === "date") return this.byDate();
        if (by === "groups") {
            // Their names stand on the map.
            const own = this.clusters.map((cluster) => rgb(cluster.color));
            return { colors: this.all.map((point) => own[point.cluster] ?? rgb(OTHERS)), legend: [] };
        }
        const kinds = this.all.map((point) => COLORINGS[by](point) || "(not known)");
        const counts = new Map();
        for (const kind of kinds) counts.set(kind, (counts.get(kind) ?? 0) + 1);
        const legend = [...counts].sort((one, other) => other[1] - one[1]).map(([kind, many], place) => [kind, place < MOST_COLORS ? hue(place) : rgb(OTHERS), many]);
        const colors = new Map(legend);
        return { colors: kinds.map((kind) => colors.get(kind)), legend };
    }

    // By rank, not by time: most of a shelf is of last year.
    byDate() {
        const dates = [...new Set(this.all.map((point) => point.date ?? ""))].sort();
        const mix = (share) => OLD.map((low, channel) => Math.round(low + share * (NEW[channel] - low)));
        const colors = new Map(dates.map((date, place) => [date, mix(place / Math.max(1, dates.length - 1))]));
        const shown = dates.length < 3 ? dates : [dates[0], dates[dates.length >> 1], dates.at(-1)];
        return { colors: this.all.map((point) => colors.get(point.date ?? "")), legend: shown.map((date) => [date, colors.get(date), null]) };
    }
}
