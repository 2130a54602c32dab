/**
 * From an image to the tensor that a network takes, with the integer arithmetic of Pillow's resize,
 * so that Python and the browser give the same tensor.
 *
 * 1. {@link fit}: resize, and crop a square around the center, in 8 bits.
 * 2. {@link normalize}: crop to the network's input, scale to [0, 1], subtract mean, divide by std.
 *
 * @typedef {object} Preparation
 * @property {number[]} mean Per channel, in units of [0, 1].
 * @property {number[]} std
 * @property {number} resolution Side of the input, in pixels.
 * @property {number | null} [resize] Length of the shorter side before the crop.
 * @property {"nearest" | "bilinear" | "bicubic"} [interpolation]
 * @property {boolean} [squash] Whether the aspect ratio is let go.
 * @property {"RGB" | "BGR"} [order]
 *
 * @typedef {{ data: ArrayLike<number>, width: number, height: number }} Pixels RGBA, row by row.
 */

/** Bits after the point of a filter's weights, as in Pillow. */
const PRECISION = 22;

/** Half the width of each filter, and its weight at a distance. */
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** The cubic convolution of Keys (1981) with a = -0.5. */
function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/**
 * Split RGBA pixels into one gray plane (ITU-R 601-2 luma) or three color planes.
 *
 * @param {Pixels} pixels
 * @param {number} channels 1 or 3.
 * @returns {Uint8Array[]}
 */
export function planes({ data, width, height }, channels) {
  const size = width * height;
  const result = Array.from({ length: channels }, () => new Uint8Array(size));
  for (let i = 0; i < size; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) result[0][i] = (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16;
    else [result[0][i], result[1][i], result[2][i]] = [r, g, b];
  }
  return result;
}

/**
 * Resize and crop a square around the center.
 *
 * @param {Pixels} pixels
 * @param {Preparation} preparation
 * @returns {{ planes: Uint8Array[], side: number }}
 */
export function fit(pixels, preparation) {
  const side = preparation.resize ?? preparation.resolution;
  const { width, height } = pixels;
  const shorter = Math.min(width, height);
  const scaled = (length) => (preparation.squash ? side : Math.floor((side * length) / shorter));
  const [across, down] = [width, height].map((length) => {
    const left = offset(scaled(length), side, preparation.resolution);
    const ratio = length / scaled(length);
    return [left * ratio, Math.min((left + side) * ratio, length)].map(Math.fround);
  });
  const resize = preparation.interpolation === "nearest" ? nearest : resample;
  const box = { across, down };
  return {
    side,
    planes: planes(pixels, preparation.mean.length).map((plane) =>
      resize(plane, width, height, side, box, FILTERS[preparation.interpolation ?? "bilinear"]),
    ),
  };
}

/**
 * Where the square that {@link fit} keeps starts, so that the later crop is centered as torchvision
 * centers it.
 */
function offset(length, side, resolution) {
  return middle(length, resolution) - middle(side, resolution);
}

/** Half of the difference, rounded to even as Python's `round`. */
function middle(length, inner) {
  const half = (length - inner) / 2;
  const floor = Math.floor(half);
  return half - floor === 0.5 ? floor + (floor % 2) : Math.round(half);
}

/**
 * Resize along the rows, then along the columns. Pillow does the same, but for some tall images,
 * where the other order costs less; those may differ by one level of 255.
 */
function resample(plane, width, height, side, { across, down }, filter) {
  const rows = alongRows(plane, width, height, side, across, filter);
  const columns = transpose(rows, side, height);
  return transpose(alongRows(columns, height, side, side, down, filter), side, side);
}

/** Resize each of `count` rows of `length` pixels to `side`. */
function alongRows(plane, length, count, side, box, filter) {
  if (length === side && box[0] === 0 && box[1] === side) return plane;
  const taps = weights(length, box, side, filter);
  const result = new Uint8Array(side * count);
  for (let y = 0; y < count; y++) {
    taps.forEach(({ start, parts }, x) => {
      let sum = 1 << (PRECISION - 1);
      for (let i = 0; i < parts.length; i++) sum += plane[y * length + start + i] * parts[i];
      result[y * side + x] = clip(sum);
    });
  }
  return result;
}

function transpose(plane, width, height) {
  const result = new Uint8Array(plane.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) result[x * height + y] = plane[y * width + x];
  }
  return result;
}

/** For each output its first input, and the weights from there on, as integers. */
function weights(length, [low, high], side, { support, weight }) {
  const scale = Math.fround(high - low) / side;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: side }, (_, at) => {
    const center = low + (at + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(length, Math.trunc(center + reach + 0.5));
    const parts = [];
    for (let x = start; x < end; x++) parts.push(weight((x - center + 0.5) * (1 / stretch)));
    const sum = parts.reduce((total, part) => total + part, 0);
    return { start, parts: parts.map((part) => fixed(part / sum)) };
  });
}

function fixed(part) {
  return Math.trunc(part * 2 ** PRECISION + (part < 0 ? -0.5 : 0.5));
}

function clip(sum) {
  return Math.min(Math.max(sum >> PRECISION, 0), 255);
}

function nearest(plane, width, height, side, { across, down }) {
  const index = ([low, high], length) =>
    Array.from({ length: side }, (_, at) =>
      Math.min(length - 1, Math.floor(low + ((at + 0.5) * (high - low)) / side)),
    );
  const [columns, rows] = [index(across, width), index(down, height)];
  return Uint8Array.from({ length: side * side }, (_, i) => {
    return plane[rows[Math.floor(i / side)] * width + columns[i % side]];
  });
}

/**
 * Crop and normalize, in float32.
 *
 * @param {{ planes: Uint8Array[], side: number }} square Of {@link fit}.
 * @param {Preparation} preparation
 * @returns {Float32Array} Shape (1, channels, resolution, resolution).
 */
export function normalize(square, preparation) {
  const { mean, std, resolution } = preparation;
  const cropped = crop(square, resolution);
  if (preparation.order === "BGR") cropped.reverse();
  const tensor = new Float32Array(cropped.length * resolution ** 2);
  const f = Math.fround;
  cropped.forEach((plane, c) => {
    plane.forEach((value, i) => {
      tensor[c * plane.length + i] = f(f(f(value / 255) - f(mean[c])) / f(std[c]));
    });
  });
  return tensor;
}

/**
 * The central square of each plane.
 *
 * @param {{ planes: Uint8Array[], side: number }} square
 * @param {number} resolution
 * @returns {Uint8Array[]}
 */
export function crop({ planes, side }, resolution) {
  const start = middle(side, resolution);
  return planes.map((plane) =>
    Uint8Array.from({ length: resolution ** 2 }, (_, i) => {
      const [y, x] = [Math.floor(i / resolution), i % resolution];
      return plane[(start + y) * side + start + x];
    }),
  );
}
