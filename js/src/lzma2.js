/**
 * A decoder of raw LZMA2 streams, after the LZMA specification
 * (https://www.7-zip.org/sdk.html) and the chunk headers of
 * https://tukaani.org/xz/xz-file-format.txt, section 5.3.1.
 */
import { SecError } from "./errors.js";

/** Sizes of the groups of probabilities for 4 low and 4 position bits at most. */
const STATES = 12;
const HALF = 1024;
const DICTIONARY = 2 ** 20;

/** Decodes bits of adaptive probability from one chunk. */
class RangeDecoder {
  /** @param {Uint8Array} data */
  constructor(data) {
    if (data.length < 5 || data[0] !== 0) throw damaged();
    this.data = data;
    this.at = 5;
    this.range = 0xffffffff;
    this.code = ((data[1] << 24) | (data[2] << 16) | (data[3] << 8) | data[4]) >>> 0;
  }

  normalize() {
    if (this.range >= 2 ** 24) return;
    if (this.at >= this.data.length) throw damaged();
    this.range = (this.range << 8) >>> 0;
    this.code = ((this.code << 8) | this.data[this.at++]) >>> 0;
  }

  /**
   * @param {Uint16Array} probabilities
   * @param {number} index
   * @returns {number}
   */
  bit(probabilities, index) {
    this.normalize();
    const p = probabilities[index];
    const bound = (this.range >>> 11) * p;
    if (this.code < bound) {
      this.range = bound;
      probabilities[index] = p + ((2048 - p) >>> 5);
      return 0;
    }
    this.range -= bound;
    this.code -= bound;
    probabilities[index] = p - (p >>> 5);
    return 1;
  }

  /**
   * Bits of even probability, the highest first.
   *
   * @param {number} count
   * @returns {number}
   */
  direct(count) {
    let value = 0;
    while (count--) {
      this.normalize();
      this.range >>>= 1;
      const bit = this.code >= this.range ? 1 : 0;
      if (bit) this.code -= this.range;
      value = value * 2 + bit;
    }
    return value;
  }

  /**
   * A number of `bits` bits, the highest first.
   *
   * @param {Uint16Array} probabilities
   * @param {number} start
   * @param {number} bits
   * @returns {number}
   */
  tree(probabilities, start, bits) {
    let node = 1;
    for (let i = 0; i < bits; i++) node = 2 * node + this.bit(probabilities, start + node);
    return node - (1 << bits);
  }

  /**
   * A number of `bits` bits, the lowest first.
   *
   * @param {Uint16Array} probabilities
   * @param {number} start
   * @param {number} bits
   * @returns {number}
   */
  reverseTree(probabilities, start, bits) {
    let node = 1;
    let value = 0;
    for (let i = 0; i < bits; i++) {
      const bit = this.bit(probabilities, start + node);
      node = 2 * node + bit;
      value |= bit << i;
    }
    return value;
  }
}

/** Probabilities of a length: short, middle or long. */
class Length {
  constructor() {
    this.choice = fresh(2);
    this.low = fresh(16 * 8);
    this.middle = fresh(16 * 8);
    this.high = fresh(256);
  }

  /**
   * @param {RangeDecoder} coder
   * @param {number} position
   * @returns {number}
   */
  decode(coder, position) {
    if (!coder.bit(this.choice, 0)) return 2 + coder.tree(this.low, 8 * position, 3);
    if (!coder.bit(this.choice, 1)) return 10 + coder.tree(this.middle, 8 * position, 3);
    return 18 + coder.tree(this.high, 0, 8);
  }
}

/** Everything that LZMA remembers between symbols. */
class State {
  /** @param {number} properties The byte of lc, lp and pb. */
  constructor(properties) {
    this.properties = properties;
    this.lc = properties % 9;
    const rest = (properties - this.lc) / 9;
    this.lp = rest % 5;
    this.pb = (rest - this.lp) / 5;
    if (properties > 224 || this.lc + this.lp > 4) throw damaged();
    this.state = 0;
    this.repeats = [0, 0, 0, 0];
    this.literals = fresh(0x300 << (this.lc + this.lp));
    this.isMatch = fresh(STATES * 16);
    this.isRepeat = fresh(STATES);
    this.isRepeat0 = fresh(STATES);
    this.isRepeat1 = fresh(STATES);
    this.isRepeat2 = fresh(STATES);
    this.isRepeat0Long = fresh(STATES * 16);
    this.slots = fresh(4 * 64);
    this.special = fresh(128);
    this.align = fresh(16);
    this.length = new Length();
    this.repeatLength = new Length();
  }
}

/** Output that grows to a size known before; the dictionary is the output itself. */
class Output {
  /** @param {number} size */
  constructor(size) {
    this.bytes = new Uint8Array(size);
    this.at = 0;
    this.start = 0;
  }

  /** @param {number} byte */
  put(byte) {
    if (this.at >= this.bytes.length) throw damaged();
    this.bytes[this.at++] = byte;
  }

  /**
   * @param {number} distance From 0 on.
   * @param {number} length
   */
  copy(distance, length) {
    if (distance >= Math.min(this.at - this.start, DICTIONARY)) throw damaged();
    for (let i = 0; i < length; i++) this.put(this.bytes[this.at - distance - 1]);
  }
}

/**
 * Unpack a raw LZMA2 stream to exactly `size` bytes.
 *
 * @param {Uint8Array} data
 * @param {number} size
 * @returns {Uint8Array}
 */
export function unpackLzma2(data, size) {
  const output = new Output(size);
  /** @type {State | undefined} */
  let state;
  let at = 0;
  for (;;) {
    const control = data[at++];
    if (control === undefined) throw damaged();
    if (control === 0) break;
    if (control === 1 || control >= 0xe0) output.start = output.at;
    if (control < 0x80) {
      if (control > 2 || at + 2 > data.length) throw damaged();
      const length = ((data[at] << 8) | data[at + 1]) + 1;
      at += 2;
      if (at + length > data.length) throw damaged();
      for (let i = 0; i < length; i++) output.put(data[at + i]);
      at += length;
      continue;
    }
    const large = (((control & 31) << 16) | (data[at] << 8) | data[at + 1]) + 1;
    const length = ((data[at + 2] << 8) | data[at + 3]) + 1;
    at += 4;
    if (control >= 0xc0) state = new State(data[at++]);
    else if (control >= 0xa0 && state) state = new State(state.properties);
    if (!state || at + length > data.length || output.at + large > size) throw damaged();
    decodeChunk(data.subarray(at, at + length), state, output, output.at + large);
    at += length;
  }
  if (output.at !== size || at !== data.length) throw damaged();
  return output.bytes;
}

/**
 * @param {Uint8Array} data
 * @param {State} state
 * @param {Output} output
 * @param {number} end
 */
function decodeChunk(data, state, output, end) {
  const coder = new RangeDecoder(data);
  while (output.at < end) {
    const position = (output.at - output.start) & ((1 << state.pb) - 1);
    if (!coder.bit(state.isMatch, state.state * 16 + position)) {
      literal(coder, state, output);
      continue;
    }
    const length = match(coder, state, output, position);
    if (output.at + length > end) throw damaged();
    output.copy(state.repeats[0], length);
  }
  coder.normalize();
  if (coder.at !== data.length || coder.code !== 0) throw damaged();
}

/**
 * @param {RangeDecoder} coder
 * @param {State} state
 * @param {Output} output
 */
function literal(coder, state, output) {
  const before = output.at > output.start ? output.bytes[output.at - 1] : 0;
  const low = (output.at - output.start) & ((1 << state.lp) - 1);
  const start = 0x300 * ((low << state.lc) + (before >> (8 - state.lc)));
  let symbol = 1;
  if (state.state >= 7) {
    let matched = output.bytes[output.at - state.repeats[0] - 1];
    while (symbol < 256) {
      const expected = (matched >> 7) & 1;
      matched <<= 1;
      const bit = coder.bit(state.literals, start + ((1 + expected) << 8) + symbol);
      symbol = 2 * symbol + bit;
      if (bit !== expected) break;
    }
  }
  while (symbol < 256) symbol = 2 * symbol + coder.bit(state.literals, start + symbol);
  output.put(symbol & 255);
  state.state = state.state < 4 ? 0 : state.state < 10 ? state.state - 3 : state.state - 6;
}

/**
 * Decode a match or a repeated match; its distance is in `state.repeats[0]`.
 *
 * @param {RangeDecoder} coder
 * @param {State} state
 * @param {Output} output
 * @param {number} position
 * @returns {number} Its length.
 */
function match(coder, state, output, position) {
  const short = state.state < 7;
  if (!coder.bit(state.isRepeat, state.state)) {
    const length = state.length.decode(coder, position);
    state.repeats = [distance(coder, state, length), ...state.repeats.slice(0, 3)];
    state.state = short ? 7 : 10;
    return length;
  }
  if (output.at === output.start) throw damaged();
  if (!coder.bit(state.isRepeat0, state.state)) {
    if (!coder.bit(state.isRepeat0Long, state.state * 16 + position)) {
      state.state = short ? 9 : 11;
      return 1;
    }
  } else {
    let which = 1;
    if (coder.bit(state.isRepeat1, state.state))
      which = 2 + coder.bit(state.isRepeat2, state.state);
    const [again] = state.repeats.splice(which, 1);
    state.repeats.unshift(again);
  }
  state.state = short ? 8 : 11;
  return state.repeatLength.decode(coder, position);
}

/**
 * @param {RangeDecoder} coder
 * @param {State} state
 * @param {number} length
 * @returns {number} From 0 on.
 */
function distance(coder, state, length) {
  const slot = coder.tree(state.slots, 64 * Math.min(length - 2, 3), 6);
  if (slot < 4) return slot;
  const bits = (slot >> 1) - 1;
  const base = (2 | (slot & 1)) * 2 ** bits;
  if (slot < 14) return base + coder.reverseTree(state.special, base - slot, bits);
  return base + coder.direct(bits - 4) * 16 + coder.reverseTree(state.align, 0, 4);
}

/** @param {number} size */
function fresh(size) {
  return new Uint16Array(size).fill(HALF);
}

function damaged() {
  return new SecError("a damaged section", { found: "bytes that are not LZMA2" });
}
