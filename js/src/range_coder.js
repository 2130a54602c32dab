/**
 * The range coder of docs/format.md.
 *
 * Only `point - low` decides, so that one difference of 64 bits is kept, in two halves of 32 bits.
 * `range >> 24` fits into the 53 bits of a double; products with it are computed in parts.
 */
import { SecError } from "./errors.js";

const TOTAL = 2 ** 24;
const WORD = 2 ** 32;
const ROUNDING = 2 ** -20;

export class RangeCoder {
  /** @param {Uint8Array} data Words of 32 bits, little endian. */
  constructor(data) {
    if (data.length % 4) throw new SecError("a damaged stream", { expected: "words of 4 bytes" });
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    this.words = data.length / 4;
    this.next = 0;
    this.high = this.word();
    this.low = this.word();
    this.rangeHigh = WORD - 1;
    this.rangeLow = WORD - 1;
    this.scale = 2 ** 40 - 1;
    this.productHigh = 0;
    this.productLow = 0;
  }

  word() {
    const at = this.next++;
    return at < this.words ? this.view.getUint32(4 * at, true) : 0;
  }

  /** Where in [0, 2^24) the next symbol is. */
  quantile() {
    const ratio = (this.high * WORD + this.low) / this.scale;
    let quantile = Math.floor(ratio);
    // The division rounds, by less than 2^-27: only near an integer can it be one off.
    if (Math.abs(ratio - Math.round(ratio)) < ROUNDING) {
      quantile = Math.round(ratio);
      if (this.isBelow(quantile)) quantile--;
    }
    if (quantile >= TOTAL) throw new SecError("a damaged stream");
    return quantile;
  }

  /**
   * Whether the difference is below `scale * times`.
   *
   * @param {number} times At most 2^24 + 1.
   */
  isBelow(times) {
    this.multiply(times);
    return (
      this.high < this.productHigh || (this.high === this.productHigh && this.low < this.productLow)
    );
  }

  /**
   * Set the two halves of `scale * times`.
   *
   * @param {number} times
   */
  multiply(times) {
    const scaleLow = this.scale % 65536;
    const upper = ((this.scale - scaleLow) / 65536) * times;
    const lower = (upper % 65536) * 65536 + scaleLow * times;
    this.productHigh = Math.floor(upper / 65536) + Math.floor(lower / WORD);
    this.productLow = lower % WORD;
  }

  /**
   * Remove a symbol.
   *
   * @param {number} start Sum of the frequencies before it.
   * @param {number} frequency Of it.
   */
  take(start, frequency) {
    this.multiply(start);
    this.low -= this.productLow;
    this.high -= this.productHigh;
    if (this.low < 0) {
      this.low += WORD;
      this.high--;
    }
    this.multiply(frequency);
    this.rangeHigh = this.productHigh;
    this.rangeLow = this.productLow;
    if (this.rangeHigh === 0) {
      this.rangeHigh = this.rangeLow;
      this.rangeLow = 0;
      this.high = this.low;
      this.low = this.word();
    }
    this.scale = this.rangeHigh * 256 + Math.floor(this.rangeLow / TOTAL);
  }

  /**
   * One of 2^width symbols of the same frequency.
   *
   * @param {number} width In 1 to 16.
   */
  bits(width) {
    const frequency = 2 ** (24 - width);
    const symbol = Math.floor(this.quantile() / frequency);
    this.take(symbol * frequency, frequency);
    return symbol;
  }

  /**
   * Numbers of several widths: the low 16 bits of all, then the high bits of the wide ones.
   *
   * @param {ArrayLike<number>} widths Each in 0 to 31.
   * @returns {Int32Array}
   */
  bitList(widths) {
    const values = new Int32Array(widths.length);
    let wide = false;
    for (let i = 0; i < widths.length; i++) {
      const width = widths[i];
      if (width > 16) wide = true;
      if (width) values[i] = this.bits(Math.min(width, 16));
    }
    if (!wide) return values;
    for (let i = 0; i < widths.length; i++) {
      if (widths[i] > 16) values[i] |= this.bits(widths[i] - 16) << 16;
    }
    return values;
  }

  /**
   * One symbol by cumulative frequencies.
   *
   * @param {Int32Array} cumulative From {@link cumulate}.
   */
  counted(cumulative) {
    const quantile = this.quantile();
    let symbol = 0;
    while (quantile >= cumulative[symbol + 1]) symbol++;
    this.take(cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol]);
    return symbol;
  }

  /** Make sure that everything has been read. */
  finish() {
    if (this.next < this.words)
      throw new SecError("a damaged stream", { found: "bytes after its end" });
  }
}

/**
 * Cumulative frequencies that sum to 2^24, from positive counts.
 *
 * @param {Int32Array} counts
 * @param {Int32Array} cumulative One longer; is filled.
 */
export function cumulate(counts, cumulative) {
  let sum = 0;
  for (const count of counts) sum += count;
  const scale = (TOTAL - counts.length) / sum;
  let before = 0;
  for (let i = 0; i < counts.length; i++) {
    cumulative[i] = Math.floor(before * scale) + i;
    before += counts[i];
  }
  cumulative[counts.length] = TOTAL;
}
