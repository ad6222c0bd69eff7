// Weight schedules and their heat map, as in methods/ildm/schedules.py and heat_map.py: tests compare the two.

export const COLUMNS = 250;
const PICTURE_ROWS = 160;
const LAST_TIMESTEP = 999;
const LAST_POSITION = 9999;
const RAMP = [[13, 17, 35], [45, 52, 120], [32, 128, 141], [94, 201, 97], [253, 231, 36]];
const STAGE_GAP = [96, 96, 96];

// A network's self-attentions, from the stage of each in order of execution.
export function blocksOf(stages) {
    return stages.map((stage, index) => ({ index, stage }));
}

// "3-7, 9" to a set of numbers; null for text that Python would refuse.
export function parsePositions(text) {
    const positions = new Set();
    for (const part of text.split(",").map((piece) => piece.trim()).filter(Boolean)) {
        const match = /^(\d+)(?:\s*-\s*(\d+))?$/.exec(part);
        if (!match) return null;
        const first = Number(match[1]);
        const last = Number(match[2] ?? match[1]);
        if (last < first || last > LAST_POSITION) return null;
        for (let number = first; number <= last; number++) positions.add(number);
    }
    return positions.size ? positions : null;
}

// "999: 0, 0: 1" to sorted [timestep, weight] pairs; null for text that Python would refuse.
export function parseTable(text) {
    const points = [];
    for (const part of text.split(/[,\n]/).map((piece) => piece.trim()).filter(Boolean)) {
        const [t, weight, ...rest] = part.split(":").map((side) => (side.trim() === "" ? NaN : Number(side)));
        if (rest.length || !(t >= 0 && t <= LAST_TIMESTEP) || !(weight >= 0 && weight <= 1)) return null;
        points.push([t, weight]);
    }
    points.sort((one, other) => one[0] - other[0]);
    return points.length && points.every(([t], i) => i === 0 || t > points[i - 1][0]) ? points : null;
}

function blockFilter(where, positions) {
    if (where === "everywhere") return () => true;
    const numbers = parsePositions(positions);
    return numbers && ((block) => numbers.has(where === "stages" ? block.stage : block.index));
}

export function dropSchedule(where, positions, tau) {
    const inside = blockFilter(where, positions);
    return inside && ((block, t) => (inside(block) && t <= tau ? 1 : 0));
}

export function gaussianSchedule(alpha, tau, sigma) {
    return sigma > 0 ? (block, t) => alpha * Math.exp(-(((t - tau) / sigma) ** 2)) : null;
}

function tableSchedule(points) {
    return (block, t) => {
        if (t <= points[0][0]) return points[0][1];
        for (let i = 1; i < points.length; i++) {
            const [[low, lowWeight], [high, highWeight]] = [points[i - 1], points[i]];
            if (t <= high) return lowWeight + ((highWeight - lowWeight) * (t - low)) / (high - low);
        }
        return points[points.length - 1][1];
    };
}

// connected: the schedules of `first` and `second`, those that are connected.
export function combinedSchedule(connected, operation, factor, where, positions, overTime) {
    const inside = blockFilter(where, positions);
    const points = overTime.trim() ? parseTable(overTime) : null;
    if (!inside || (overTime.trim() && !points)) return null;
    const table = points ? tableSchedule(points) : () => 1;
    return (block, t) => {
        if (!inside(block)) return 0;
        const weights = connected.map((schedule) => schedule(block, t));
        const joined = operation === "maximum" && weights.length ? Math.max(...weights) : weights.reduce((one, other) => one * other, 1);
        return joined * factor * table(block, t);
    };
}

// {width, height, data}: data is RGBA bytes, as ImageData wants them.
export function heatMap(schedule, blocks) {
    const cell = Math.max(1, Math.floor(PICTURE_ROWS / blocks.length));
    const rows = [];
    for (const block of blocks) {
        if (block.index && blocks[block.index - 1].stage !== block.stage) rows.push(Array(COLUMNS).fill(STAGE_GAP));
        const colors = [];
        for (let column = 0; column < COLUMNS; column++) {
            const position = schedule(block, LAST_TIMESTEP * (1 - column / (COLUMNS - 1))) * (RAMP.length - 1);
            const low = Math.min(Math.floor(position), RAMP.length - 2);
            colors.push(RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (position - low))));
        }
        for (let i = 0; i < cell; i++) rows.push(colors);
    }
    return { width: COLUMNS, height: rows.length, data: Uint8ClampedArray.from(rows.flat().flatMap((color) => [...color, 255])) };
}
