// The preview pictures of LoRAs on a canvas: fetched when they come into sight, a bounded number of them kept.

import { previewUrl } from "./loras.js";

const SIDE = 72;
const KEPT = 300;
const NAME = 18; // Letters below a picture.

function short(name) {
    return name.split(/[\\/]/).at(-1).replace(/\.\w+( \(bundled\))?$/, "").slice(0, NAME);
}

export class Pictures {
    // arrived: called when one more can be drawn.
    constructor(arrived) {
        this.arrived = arrived;
        this.images = new Map();
    }

    // null until it is there, and for a LoRA without one.
    of(name) {
        if (!this.images.has(name)) {
            if (this.images.size >= KEPT) this.images.delete(this.images.keys().next().value);
            const image = new Image();
            image.addEventListener("load", this.arrived);
            image.src = previewUrl(name);
            this.images.set(name, image);
        }
        const image = this.images.get(name);
        return image.complete && image.naturalWidth ? image : null;
    }

    // loras: [{ name, at: [x, y], color, ink, alpha }]. One that would hide another is left out; how many were drawn.
    draw(context, loras) {
        const taken = [];
        context.font = "10px sans-serif";
        context.textAlign = "center";
        for (const { name, at, color, ink, alpha } of loras) {
            const [x, y] = at;
            if (taken.some(([ox, oy]) => Math.abs(ox - x) < SIDE + 4 && Math.abs(oy - y) < SIDE + 16)) continue;
            const image = this.of(name);
            if (!image) continue;
            taken.push(at);
            const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
            const [wide, high] = [image.naturalWidth * scale, image.naturalHeight * scale];
            Object.assign(context, { globalAlpha: alpha, lineWidth: 2, strokeStyle: color, fillStyle: ink });
            context.drawImage(image, x - wide / 2, y - high / 2, wide, high);
            context.strokeRect(x - wide / 2, y - high / 2, wide, high);
            context.fillText(short(name), x, y + high / 2 + 11);
            context.globalAlpha = 1;
        }
        return taken.length;
    }
}
