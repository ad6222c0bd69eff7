// Dots by the ten thousand on a plain canvas: written into its pixels, a stamp a dot, with smooth edges. No graphics card is needed.

function packed([red, green, blue]) {
    return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

function mixed(one, other, share) {
    return one.map((value, channel) => Math.round(value + share * (other[channel] - value)));
}

// Of a dot in the middle of a pixel: [places, coverage in 0..256], relative to that pixel of rows of `width`.
function stamp(radius, width) {
    const reach = Math.ceil(radius);
    const [places, coverage] = [[], []];
    for (let y = -reach; y <= reach; y++) {
        for (let x = -reach; x <= reach; x++) {
            const share = Math.min(1, radius + 0.5 - Math.hypot(x, y));
            if (share > 0) {
                places.push(y * width + x);
                coverage.push(Math.round(256 * share));
            }
        }
    }
    return { reach, places: Int32Array.from(places), coverage: Uint16Array.from(coverage) };
}

export class Dots {
    // context: 2D, of a canvas that has its size already.
    constructor(context) {
        this.context = context;
        const { width, height } = context.canvas;
        [this.width, this.height] = [width, height];
        this.image = context.createImageData(width, height);
        this.pixels = new Uint32Array(this.image.data.buffer);
    }

    // Draws every dot. x, y: 0..1, at left + x * wide and top + y * high in the canvas's pixels; colors: [red, green, blue] of each dot;
    // bright: 1 for each dot that stands out (null: all do); ground: the colour behind.
    draw({ x, y }, { left, top, wide, high }, radius, colors, bright, ground) {
        this.pixels.fill(packed(ground));
        const mark = stamp(radius, this.width);
        if (this.colors !== colors || String(this.ground) !== String(ground)) {
            [this.colors, this.ground] = [colors, ground];
            this.full = Uint32Array.from(colors, packed);
            this.dim = Uint32Array.from(colors, (color) => packed(mixed(color, ground, 0.8)));
        }
        for (const pass of bright ? [0, 1] : [1]) {
            const shades = pass ? this.full : this.dim;
            for (let number = 0; number < x.length; number++) {
                if (bright && bright[number] !== pass) continue;
                this.put(Math.round(left + x[number] * wide), Math.round(top + y[number] * high), shades[number], mark);
            }
        }
        this.context.putImageData(this.image, 0, 0);
    }

    put(column, row, shade, { reach, places, coverage }) {
        const { pixels, width, height } = this;
        // At the edge, where a stamp would run over to the next row, dots are left out.
        if (column < reach || row < reach || column >= width - reach || row >= height - reach) return;
        const middle = row * width + column;
        for (let place = 0; place < places.length; place++) {
            const share = coverage[place];
            const at = middle + places[place];
            if (share === 256) {
                pixels[at] = shade;
                continue;
            }
            const rest = 256 - share;
            const under = pixels[at];
            // Red and blue at once.
            const redBlue = (((under & 0xff00ff) * rest + (shade & 0xff00ff) * share) >>> 8) & 0xff00ff;
            const green = (((under & 0xff00) * rest + (shade & 0xff00) * share) >>> 8) & 0xff00;
            pixels[at] = 0xff000000 | redBlue | green;
        }
    }
}
