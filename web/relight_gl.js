// The light of lamps on a picture's maps, as in methods/lamps.py and methods/relight.py: a test compares the two.

export const MOST_LAMPS = 8;

const VERTEX = `#version 300 es
void main() {
    // One triangle over the whole picture.
    vec2 corner = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
    gl_Position = vec4(corner, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
const int MARCH = 48;
const float CLEARANCE = 0.01;
uniform sampler2D albedoMap, normalMap, depthMap, shadingMap, surfaceMap;
uniform ivec2 size;
uniform int coarse;
uniform int lamps;
uniform vec3 position[${MOST_LAMPS}], color[${MOST_LAMPS}];
uniform float reach[${MOST_LAMPS}];
uniform vec3 sunDirection, sunColor;
uniform float ambient, original, relief, shadows, hardness, shadingTop, before;
uniform bool hasShading, shines;
out vec4 picture;

vec3 linear(vec3 srgb) {
    return mix(srgb / 12.92, pow((srgb + 0.055) / 1.055, vec3(2.4)), greaterThan(srgb, vec3(0.04045)));
}

vec3 encoded(vec3 light) {
    light = clamp(light, 0.0, 1.0);
    return mix(light * 12.92, 1.055 * pow(light, vec3(1.0 / 2.4)) - 0.055, greaterThan(light, vec3(0.0031308)));
}

float heightAt(ivec2 pixel) {
    vec2 packed = texelFetch(depthMap, pixel, 0).rg * 255.0;
    return -relief * (packed.r * 256.0 + packed.g) / 65535.0;
}

vec3 placeOf(ivec2 pixel) {
    vec2 wide = vec2(size);
    vec2 share = (2.0 * vec2(pixel) + 1.0) / wide;
    return vec3((share.x - 1.0) * wide.x / wide.y, 1.0 - share.y, heightAt(pixel));
}

float visibility(vec3 place, vec3 lamp) {
    vec3 way = lamp - place;
    float end = way.z > 1e-6 ? min((CLEARANCE - place.z) / way.z, 1.0) : 1.0;
    float steepness = 4.0 * pow(12.5, hardness), far = length(way), seen = 1.0;
    vec2 wide = vec2(size);
    for (int step = 1; step <= MARCH; step++) {
        float part = float(step) / float(MARCH), at = end * part * part;
        vec3 point = place + way * at;
        vec2 pixel = vec2((point.x * wide.y / wide.x + 1.0) * wide.x, (1.0 - point.y) * wide.y) / 2.0;
        float there = heightAt(ivec2(clamp(floor(pixel), vec2(0.0), wide - 1.0)));
        float below = min(point.z + CLEARANCE - there, 0.0);
        seen = min(seen, 1.0 + steepness * below / max(at * far, 1e-4));
    }
    return max(seen, 0.0);
}

vec3 highlights(vec3 normal, vec3 towards, vec3 base, float roughness, float metallic) {
    vec3 between = normalize(towards + vec3(0.0, 0.0, 1.0));
    float facing = clamp(normal.z, 1e-4, 1.0), lit = clamp(dot(normal, towards), 1e-3, 1.0);
    float alpha = max(roughness * roughness, 0.01), squared = alpha * alpha;
    float cosine = clamp(dot(normal, between), 0.0, 1.0), around = cosine * cosine * (squared - 1.0) + 1.0;
    float k = (roughness + 1.0) * (roughness + 1.0) / 8.0;
    float masking = 0.25 / ((lit * (1.0 - k) + k) * (facing * (1.0 - k) + k));
    vec3 reflectance = 0.04 + (base - 0.04) * metallic;
    vec3 fresnel = reflectance + (1.0 - reflectance) * pow(1.0 - clamp(between.z, 0.0, 1.0), 5.0);
    return squared / (around * around) * masking * fresnel * (1.0 - roughness * (1.0 - metallic));
}

void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy) * coarse;
    pixel = ivec2(pixel.x, size.y - 1 - pixel.y);
    vec3 albedo = linear(texelFetch(albedoMap, pixel, 0).rgb);
    vec3 old = hasShading ? linear(texelFetch(shadingMap, pixel, 0).rgb) * shadingTop : vec3(1.0);
    if (before > 0.5) {
        picture = vec4(encoded(albedo * old), 1.0);
        return;
    }
    vec3 normal = normalize(texelFetch(normalMap, pixel, 0).rgb * 2.0 - 1.0);
    vec2 surface = texelFetch(surfaceMap, pixel, 0).rg;
    vec3 place = placeOf(pixel), shading = vec3(ambient), mirrored = vec3(0.0);
    if (hasShading) shading += original * old;
    shading += sunColor * max(dot(normal, sunDirection), 0.0);
    for (int lamp = 0; lamp < lamps; lamp++) {
        vec3 way = position[lamp] - place;
        float far = max(length(way), 1e-6), falloff = min(reach[lamp] * reach[lamp] / (far * far), 1.0);
        vec3 received = color[lamp] * max(dot(normal, way / far), 0.0) * falloff;
        if (shadows > 0.0) received *= 1.0 - shadows * (1.0 - visibility(place, position[lamp]));
        shading += received;
        if (shines) mirrored += received * highlights(normal, way / far, albedo, surface.r, surface.g);
    }
    picture = vec4(encoded(albedo * (1.0 - surface.g) * shading + mirrored), 1.0);
}`;

const TEXTURES = ["albedo", "normal", "depth", "shading", "surface"];

export function linearColor(hex) {
    return [1, 3, 5].map((start) => {
        const share = parseInt(hex.slice(start, start + 2), 16) / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
}

function compiled(gl, kind, source) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    return shader;
}

// Draws maps under lamps onto a canvas.
export class Relit {
    constructor(canvas) {
        const gl = canvas.getContext("webgl2", { preserveDrawingBuffer: true, antialias: false });
        if (!gl) throw new Error("This browser has no WebGL 2.");
        this.canvas = canvas;
        this.gl = gl;
        const program = gl.createProgram();
        gl.attachShader(program, compiled(gl, gl.VERTEX_SHADER, VERTEX));
        gl.attachShader(program, compiled(gl, gl.FRAGMENT_SHADER, FRAGMENT));
        gl.linkProgram(program);
        if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
        gl.useProgram(program);
        const places = new Map();
        this.place = (name) => {
            if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
            return places.get(name);
        };
        TEXTURES.forEach((name, unit) => gl.uniform1i(this.place(`${name}Map`), unit));
        this.maps = null;
    }

    // images: by the names of TEXTURES, of one size; shading may be missing. about: shading_top, shines.
    setMaps(images, about) {
        const { gl } = this;
        gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
        TEXTURES.forEach((name, unit) => {
            gl.activeTexture(gl.TEXTURE0 + unit);
            gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
            gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
            gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
            gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, images[name] ?? images.albedo);
        });
        const { naturalWidth: width, naturalHeight: height } = images.albedo;
        this.maps = { ...about, width, height, hasShading: Boolean(images.shading) };
    }

    // light: lamps (as Python's), color, ambient, original, relief, shadows, hardness; sun: {azimuth, elevation} or nothing.
    // coarse: each so many pixels of a row are one. Returns the milliseconds it took, waiting for the picture.
    draw(light, before = false, coarse = 1) {
        if (!this.maps) return 0;
        const { gl, canvas, place } = this;
        const { width, height } = this.maps;
        const start = performance.now();
        const [across, down] = [Math.ceil(width / coarse), Math.ceil(height / coarse)];
        if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
        gl.viewport(0, 0, across, down);
        const number = (name, value) => gl.uniform1f(place(name), value);
        gl.uniform2i(place("size"), width, height);
        gl.uniform1i(place("coarse"), coarse);
        const lamps = light.lamps.slice(0, MOST_LAMPS);
        gl.uniform1i(place("lamps"), lamps.length);
        lamps.forEach((lamp, index) => {
            gl.uniform3f(place(`position[${index}]`), ((2 * lamp.x - 1) * width) / height, 1 - 2 * lamp.y, lamp.height);
            gl.uniform3fv(place(`color[${index}]`), linearColor(lamp.color).map((share, channel) => share * lamp.intensity * light.color[channel]));
            number(`reach[${index}]`, lamp.reach);
        });
        const [azimuth, elevation] = [light.sun?.azimuth ?? 0, light.sun?.elevation ?? 0].map((angle) => (angle * Math.PI) / 180);
        gl.uniform3f(
            place("sunDirection"),
            Math.sin(azimuth) * Math.cos(elevation),
            Math.sin(elevation),
            Math.cos(azimuth) * Math.cos(elevation),
        );
        gl.uniform3fv(place("sunColor"), light.sun ? light.color : [0, 0, 0]);
        for (const name of ["ambient", "original", "relief", "shadows", "hardness"]) number(name, light[name]);
        number("shadingTop", this.maps.shading_top);
        number("before", before ? 1 : 0);
        gl.uniform1i(place("hasShading"), this.maps.hasShading ? 1 : 0);
        gl.uniform1i(place("shines"), this.maps.shines ? 1 : 0);
        gl.drawArrays(gl.TRIANGLES, 0, 3);
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
        return performance.now() - start;
    }
}
