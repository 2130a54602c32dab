/** The table of tensors at the start of `REST`: docs/format.md, "REST". */
import { SecError } from "./errors.js";
import { ELEMENT_BYTES, FLOAT } from "./tensors.js";

const MOST_TENSORS = 2 ** 14;
const MOST_SIDES = 8;

/**
 * @typedef {object} Entry
 * @property {number} gap Bytes of the rest since the tensor before.
 * @property {number} type ONNX's number of the data type.
 * @property {number[]} shape
 * @property {[number, number] | undefined} factors The tensors whose product it is.
 * @property {number} bytes
 */

/**
 * Read and check the table.
 *
 * @param {Uint8Array} data `REST`, unpacked.
 * @param {number} size Bytes of all tensors.
 * @returns {{ entries: Entry[], rest: Uint8Array }}
 */
export function readTable(data, size) {
  let end = data.indexOf(10);
  if (end < 0) end = data.length;
  const rest = data.subarray(end + 1);
  /** @type {Entry[]} */
  const entries = [];
  for (const row of rows(data.subarray(0, end))) entries.push(readEntry(row, entries));
  const sum = (/** @type {(entry: Entry) => number} */ of) =>
    entries.reduce((total, entry) => total + of(entry), 0);
  if (sum((entry) => entry.gap) > rest.length) throw damaged("a gap too many");
  if (sum((entry) => entry.bytes) !== size) throw damaged("tensors of another size");
  return { entries, rest };
}

/**
 * @param {Uint8Array} line
 * @returns {unknown[]}
 */
function rows(line) {
  let table;
  try {
    table = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(line));
  } catch {
    throw damaged("no JSON");
  }
  if (!Array.isArray(table) || table.length > MOST_TENSORS) {
    throw damaged(`no list of at most ${MOST_TENSORS} tensors`);
  }
  return table;
}

/**
 * @param {unknown} row
 * @param {Entry[]} before
 * @returns {Entry}
 */
function readEntry(row, before) {
  if (!Array.isArray(row) || !Array.isArray(row[2])) throw damaged("a row that is no list");
  const [gap, type, shape, ...factors] = row;
  const isCount = (/** @type {unknown} */ n) =>
    Number.isInteger(n) && Number(n) >= 0 && Number(n) < 2 ** 31;
  if (![gap, type, ...shape, ...factors].every(isCount)) throw damaged("a row of other numbers");
  if (!(type in ELEMENT_BYTES) || shape.length > MOST_SIDES || shape.includes(0)) {
    throw damaged(`a tensor of type ${type} and shape ${shape}`);
  }
  const bytes = shape.reduce((product, side) => product * side, ELEMENT_BYTES[type]);
  const entry = { gap, type, shape, bytes, factors: undefined };
  if (!factors.length) return entry;
  const [scale, other] = factors.map((number) => before[number]);
  const fits =
    factors.length === 2 &&
    [scale?.type, other?.type, type].every((each) => each === FLOAT) &&
    scale.shape.length === 0 &&
    other.shape.join() === shape.join();
  if (!fits) throw damaged("a product of tensors that do not fit");
  return { ...entry, factors: [factors[0], factors[1]] };
}

/** @param {string} found */
function damaged(found) {
  return new SecError("a damaged table of tensors", { found });
}
