/** Tensors as matrices of integers: docs/format.md, "Tensors". */
import { SecError } from "./errors.js";
import { Bank, decodeMatrix } from "./integers.js";

/** @typedef {import("./range_coder.js").RangeCoder} RangeCoder */

export const FLOAT = 1;
const UINT8 = 2;
const INT8 = 3;
const INT32 = 6;
const MOST = 2 ** 30 - 1;

/** Bytes of an element, by ONNX's number of the data type. @type {Record<number, number>} */
export const ELEMENT_BYTES = { [FLOAT]: 4, [UINT8]: 1, [INT8]: 1, [INT32]: 4 };

/** Lowest and highest integer of each type. @type {Record<number, [number, number]>} */
const LIMITS = { [UINT8]: [0, 255], [INT8]: [-128, 127], [INT32]: [-(2 ** 31), 2 ** 31 - 1] };

/** Banks of a file: one for each data type and number of dimensions, and one for gaps. */
export class Banks {
  constructor() {
    /** @type {Map<string, Bank>} */
    this.known = new Map();
    this.gaps = new Bank(MOST);
  }

  /**
   * @param {number} type
   * @param {number[]} shape
   */
  of(type, shape) {
    const key = `${type} ${Math.min(shape.length, 2)}`;
    let bank = this.known.get(key);
    if (!bank) this.known.set(key, (bank = new Bank(ELEMENT_BYTES[type] === 1 ? 256 : MOST)));
    return bank;
  }
}

/**
 * Decode a tensor to its little-endian bytes.
 *
 * @param {RangeCoder} coder
 * @param {Banks} banks
 * @param {number} type
 * @param {number[]} shape
 * @returns {Uint8Array}
 */
export function decodeTensor(coder, banks, type, shape) {
  const size = shape.reduce((product, side) => product * side, 1);
  const rows = shape.length > 1 ? shape[0] : 1;
  const bank = banks.of(type, shape);
  if (type === FLOAT) {
    const [low, high, zeros] = coder.bitList([16, 16, 5]);
    const steps = decodeMatrix(coder, bank, banks.gaps, rows, size / rows);
    return floats(steps, low + high * 65536, 2 ** zeros);
  }
  const integers = decodeMatrix(coder, bank, banks.gaps, rows, size / rows);
  const [least, greatest] = LIMITS[type];
  for (const value of integers) if (value < least || value > greatest) throw beyond();
  if (type !== INT32) return Uint8Array.from(integers, (value) => value & 255);
  const bytes = new Uint8Array(4 * size);
  const view = new DataView(bytes.buffer);
  integers.forEach((value, i) => view.setInt32(4 * i, value, true));
  return bytes;
}

/**
 * @param {Int32Array} steps
 * @param {number} smallest
 * @param {number} unit
 */
function floats(steps, smallest, unit) {
  const bytes = new Uint8Array(4 * steps.length);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < steps.length; i++) {
    const word = smallest + steps[i] * unit;
    if (word < 0 || word >= 2 ** 32) throw beyond();
    view.setUint32(4 * i, word, true);
  }
  return bytes;
}

/**
 * The float32 product of a scalar and a tensor, both as bytes.
 *
 * @param {Uint8Array} scalar
 * @param {Uint8Array} tensor
 * @returns {Uint8Array}
 */
export function multiply(scalar, tensor) {
  const scale = view(scalar).getFloat32(0, true);
  const factors = view(tensor);
  const bytes = new Uint8Array(tensor.length);
  const product = view(bytes);
  // Exact in float64, and rounded once as it is stored.
  for (let at = 0; at < bytes.length; at += 4) {
    product.setFloat32(at, scale * factors.getFloat32(at, true), true);
  }
  return bytes;
}

/** @param {Uint8Array} bytes */
function view(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function beyond() {
  return new SecError("a damaged stream", { found: "an integer that its type cannot hold" });
}
