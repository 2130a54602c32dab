import { SecError } from "./errors.js";

const MAGIC = [0x89, 0x53, 0x45, 0x43, 0x0d, 0x0a, 0x1a, 0x0a];
const VERSION = 1;
const MOST_SECTIONS = 16;
const KNOWN = ["ABOU", "REST", "CODE"];

/**
 * @typedef {object} Section
 * @property {Uint8Array} stored Its bytes in the file.
 * @property {number} size Bytes it claims to take once unpacked.
 */

/**
 * Read the header and check every section, before anything is unpacked.
 *
 * @param {Uint8Array} data The whole file.
 * @returns {Map<string, Section>} Tag to section.
 */
export function readSections(data) {
  if (!MAGIC.every((byte, i) => data[i] === byte)) throw new SecError("not a .sec file");
  if (data.length < 12) throw cutShort(12, data.length);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const version = view.getUint16(8, true);
  const count = view.getUint16(10, true);
  if (version > VERSION) {
    throw new SecError("a file of a newer version", { expected: VERSION, found: version });
  }
  if (version < 1 || count < 1 || count > MOST_SECTIONS) throw new SecError("a damaged header");
  const start = 16 + 16 * count;
  if (data.length < start) throw cutShort(start, data.length);
  if (view.getUint32(start - 4, true) !== crc32(data.subarray(0, start - 4))) {
    throw new SecError("a damaged header", { found: "another checksum" });
  }
  return sections(data, view, count, start);
}

/**
 * @param {Uint8Array} data
 * @param {DataView} view
 * @param {number} count
 * @param {number} start
 * @returns {Map<string, Section>}
 */
function sections(data, view, count, start) {
  const heads = Array.from({ length: count }, (_, i) => 12 + 16 * i);
  const end = heads.reduce((sum, at) => sum + view.getUint32(at + 4, true), start);
  if (end !== data.length) throw cutShort(end, data.length);
  /** @type {Map<string, Section>} */
  const found = new Map();
  for (const at of heads) {
    const tag = String.fromCharCode(...data.subarray(at, at + 4));
    const stored = data.subarray(start, start + view.getUint32(at + 4, true));
    start += stored.length;
    if (crc32(stored) !== view.getUint32(at + 12, true)) {
      throw new SecError("a damaged section", { where: tag, found: "another checksum" });
    }
    if (found.has(tag)) throw new SecError("a section twice", { where: tag });
    if (!KNOWN.includes(tag) && !/^[a-z]/.test(tag)) {
      throw new SecError("an unknown section", { where: tag });
    }
    found.set(tag, { stored, size: view.getUint32(at + 8, true) });
  }
  for (const tag of KNOWN) {
    if (!found.has(tag)) throw new SecError("a section is missing", { expected: tag });
  }
  return found;
}

/**
 * @param {number} expected
 * @param {number} found
 */
function cutShort(expected, found) {
  return new SecError("the file is not complete", {
    expected: `${expected} bytes`,
    found: `${found}`,
  });
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let i = 0; i < 8; i++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte >>> 0;
});

/**
 * CRC-32 as in zlib.
 *
 * @param {Uint8Array} data
 * @returns {number}
 */
export function crc32(data) {
  let crc = 0xffffffff;
  for (let i = 0; i < data.length; i++) crc = TABLE[(crc ^ data[i]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
