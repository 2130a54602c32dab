/** Matrices of integers, coded by the magnitudes seen nearby: docs/format.md, "Integers". */
import { SecError } from "./errors.js";
import { cumulate } from "./range_coder.js";

/** @typedef {import("./range_coder.js").RangeCoder} RangeCoder */

/** The smallest magnitude of each bucket, and the bits that tell the place inside it. */
const LOWEST = [0, 1, 2, 3];
const EXTRA = [0, 0, 0, 0];
for (let k = 2; k <= 30; k++) {
  LOWEST.push(2 ** k, 2 ** k + 2 ** (k - 1));
  EXTRA.push(k - 1, k - 1);
}
/** Half of twice the typical magnitude of each bucket. */
const TYPICAL = LOWEST.map((low, b) => (2 * low + 2 ** EXTRA[b] - 1) / 2);

const EXPECTED = Array.from(
  { length: 26 },
  (_, i) => 0.02 * 2 ** (i >> 1) * (i & 1 ? 1.4140625 : 1),
);
const OVERALL = [0.25, 0.5, 1, 2, 4, 8];
const CONTEXTS = (EXPECTED.length + 1) * (OVERALL.length + 1);

const LARGEST_TILE = 4096;
const SEEN = 16;
const MEMORY = 65536;

/** Counts of buckets by context, shared by the tensors of one kind. */
export class Bank {
  /** @param {number} most The largest magnitude. */
  constructor(most) {
    this.buckets = LOWEST.filter((low) => low <= most).length;
    this.counts = Array.from({ length: CONTEXTS }, () => new Int32Array(this.buckets).fill(1));
    this.cumulative = new Int32Array(this.buckets + 1);
  }

  /** Halve the counts of a context that sum to too much. @param {Int32Array} counts */
  static forget(counts) {
    let sum = 0;
    for (const count of counts) sum += count;
    if (sum <= MEMORY) return;
    for (let i = 0; i < counts.length; i++) counts[i] = (counts[i] + 1) >> 1;
  }
}

/**
 * Decode a matrix, dense or sparse.
 *
 * @param {RangeCoder} coder
 * @param {Bank} bank
 * @param {Bank} gaps
 * @param {number} rows
 * @param {number} columns
 * @returns {Int32Array} Row by row.
 */
export function decodeMatrix(coder, bank, gaps, rows, columns) {
  return coder.bits(1)
    ? decodeSparse(coder, bank, gaps, rows * columns)
    : decodeDense(coder, bank, rows, columns);
}

/**
 * @param {RangeCoder} coder
 * @param {Bank} bank
 * @param {Bank} gaps
 * @param {number} size
 */
function decodeSparse(coder, bank, gaps, size) {
  const [count] = coder.bitList([31]);
  if (count > size) throw new SecError("a damaged stream", { expected: `${size} integers` });
  const skipped = decodeDense(coder, gaps, 1, count);
  const places = new Int32Array(count);
  let at = -1;
  for (let i = 0; i < count; i++) {
    at += Math.abs(skipped[i]) + 1;
    if (at >= size) throw new SecError("a damaged stream", { expected: `an index below ${size}` });
    places[i] = at;
  }
  const values = decodeDense(coder, bank, 1, count);
  const matrix = new Int32Array(size);
  places.forEach((place, i) => (matrix[place] = values[i]));
  return matrix;
}

/**
 * @param {RangeCoder} coder
 * @param {Bank} bank
 * @param {number} rows
 * @param {number} columns
 */
function decodeDense(coder, bank, rows, columns) {
  const size = rows * columns;
  if (!size) return new Int32Array(0);
  const buckets = new Uint8Array(size);
  const means = new Means(rows, columns);
  const area = Math.min(Math.max(Math.floor(size / 256), 64), LARGEST_TILE);
  const height = Math.min(Math.floor(Math.sqrt(area)), rows);
  const width = Math.min(Math.floor(area / height), columns);
  for (let top = 0; top < rows; top += height) {
    for (let left = 0; left < columns; left += width) {
      const bottom = Math.min(top + height, rows);
      const right = Math.min(left + width, columns);
      decodeTile(coder, bank, buckets, means, [top, bottom, left, right]);
    }
  }
  return decodeRest(coder, buckets);
}

/** Sums and counts of the magnitudes so far: of each row, each column, and all. */
class Means {
  /**
   * @param {number} rows
   * @param {number} columns
   */
  constructor(rows, columns) {
    this.columns = columns;
    this.rowSums = new Float64Array(rows);
    this.rowCounts = new Float64Array(rows);
    this.columnSums = new Float64Array(columns);
    this.columnCounts = new Float64Array(columns);
    this.sum = 0;
    this.count = 0;
    // Of one tile, overwritten by the next.
    this.ratios = new Float64Array(LARGEST_TILE);
    this.contexts = new Uint8Array(LARGEST_TILE);
    this.order = new Int32Array(LARGEST_TILE);
    this.starts = new Int32Array(CONTEXTS + 1);
    this.next = new Int32Array(CONTEXTS);
  }

  /**
   * Sort the places of a tile by context, and within a context by rows: `order` holds them, those
   * of a context from `starts[context]` to `starts[context + 1]`.
   *
   * @param {[number, number, number, number]} tile Top, bottom, left and right.
   */
  sort([top, bottom, left, right]) {
    const overall = (this.sum + 4 * 0.5) / (this.count + 4);
    const second = OVERALL.filter((bound) => bound < overall).length;
    this.starts.fill(0);
    for (let j = left; j < right; j++) {
      this.ratios[j - left] =
        (this.columnSums[j] + 2 * overall) / (this.columnCounts[j] + 2) / overall;
    }
    let k = 0;
    for (let i = top; i < bottom; i++) {
      const row = (this.rowSums[i] + 2 * overall) / (this.rowCounts[i] + 2);
      for (let j = 0; j < right - left; j++) {
        const expected = row * this.ratios[j];
        let first = 0;
        while (first < EXPECTED.length && EXPECTED[first] < expected) first++;
        const context = 7 * first + second;
        this.contexts[k++] = context;
        this.starts[context + 1]++;
      }
    }
    for (let context = 0; context < CONTEXTS; context++) {
      this.starts[context + 1] += this.starts[context];
      this.next[context] = this.starts[context];
    }
    k = 0;
    for (let i = top; i < bottom; i++) {
      for (let j = left; j < right; j++) {
        this.order[this.next[this.contexts[k++]]++] = i * this.columns + j;
      }
    }
  }

  /**
   * @param {Uint8Array} buckets Of the whole matrix.
   * @param {[number, number, number, number]} tile
   */
  see(buckets, [top, bottom, left, right]) {
    for (let i = top; i < bottom; i++) {
      for (let j = left; j < right; j++) {
        const typical = TYPICAL[buckets[i * this.columns + j]];
        this.rowSums[i] += typical;
        this.columnSums[j] += typical;
        this.sum += typical;
      }
    }
    for (let i = top; i < bottom; i++) this.rowCounts[i] += right - left;
    for (let j = left; j < right; j++) this.columnCounts[j] += bottom - top;
    this.count += (bottom - top) * (right - left);
  }
}

/**
 * @param {RangeCoder} coder
 * @param {Bank} bank
 * @param {Uint8Array} buckets Of the whole matrix; the tile is filled.
 * @param {Means} means
 * @param {[number, number, number, number]} tile
 */
function decodeTile(coder, bank, buckets, means, tile) {
  means.sort(tile);
  const { order, starts } = means;
  for (let context = 0; context < CONTEXTS; context++) {
    if (starts[context] === starts[context + 1]) continue;
    cumulate(bank.counts[context], bank.cumulative);
    for (let k = starts[context]; k < starts[context + 1]; k++) {
      buckets[order[k]] = coder.counted(bank.cumulative);
    }
  }
  for (let context = 0; context < CONTEXTS; context++) {
    if (starts[context] === starts[context + 1]) continue;
    const counts = bank.counts[context];
    for (let k = starts[context]; k < starts[context + 1]; k++) counts[buckets[order[k]]] += SEEN;
    Bank.forget(counts);
  }
  means.see(buckets, tile);
}

/**
 * Decode signs, and places inside buckets.
 *
 * @param {RangeCoder} coder
 * @param {Uint8Array} buckets
 * @returns {Int32Array}
 */
function decodeRest(coder, buckets) {
  const filled = buckets.filter((bucket) => bucket > 0);
  const signs = coder.bitList(new Uint8Array(filled.length).fill(1));
  const places = coder.bitList(filled.map((bucket) => EXTRA[bucket]));
  const values = new Int32Array(buckets.length);
  for (let i = 0, k = 0; i < buckets.length; i++) {
    if (!buckets[i]) continue;
    const magnitude = LOWEST[buckets[i]] + places[k];
    values[i] = signs[k] ? -magnitude : magnitude;
    k++;
  }
  return values;
}
