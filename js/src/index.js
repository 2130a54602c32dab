/**
 * Decodes `.sec` files, version 1, to the ONNX file that was packed, bit for bit.
 *
 * Written from docs/format.md. Without dependencies; runs in browsers, Node, Deno and workers.
 */
import { readSections } from "./container.js";
import { SecError } from "./errors.js";
import { unpackLzma2 } from "./lzma2.js";
import { RangeCoder } from "./range_coder.js";
import { readTable } from "./table.js";
import { Banks, decodeTensor, multiply } from "./tensors.js";

export { SecError };

/** Bytes that an unpacked file may have unless the caller allows more. */
export const LIMIT = 2 ** 27;

/**
 * @typedef {object} Unpacked
 * @property {Uint8Array<ArrayBuffer>} onnx The bytes of the ONNX file.
 * @property {Record<string, any>} about What the file states: provenance, accuracy, latency.
 */

/**
 * Decode a packed file.
 *
 * Sizes are compared with `limit` before anything is allocated, and the SHA-256 of the ONNX file
 * with the one in the file at the end.
 *
 * @param {Uint8Array | ArrayBuffer} file The whole file.
 * @param {{ limit?: number }} [options] Bytes that the ONNX file may have.
 * @returns {Promise<Unpacked>}
 * @throws {SecError} The file is damaged, newer, or larger than allowed.
 *
 * @example
 * const file = await fetch("net.sec").then((response) => response.arrayBuffer());
 * const { onnx, about } = await unpack(file);
 */
export async function unpack(file, { limit = LIMIT } = {}) {
  const sections = readSections(file instanceof Uint8Array ? file : new Uint8Array(file));
  const [abou, rest, code] = ["ABOU", "REST", "CODE"].map((tag) => required(sections, tag));
  if (rest.size + code.size > limit || abou.size > limit) {
    throw new SecError("larger than allowed", {
      expected: `at most ${limit} bytes`,
      found: rest.size + code.size,
    });
  }
  const about = readAbout(unpackLzma2(abou.stored, abou.size));
  const table = readTable(unpackLzma2(rest.stored, rest.size), code.size);
  const tensors = decodeTensors(code.stored, table.entries);
  const onnx = join(table, tensors, code.size);
  const digest = await sha256(onnx);
  if (digest !== about.onnx_sha256) {
    throw new SecError("the file decodes to another network than it states", {
      expected: about.onnx_sha256,
      found: digest,
    });
  }
  return { onnx, about };
}

/**
 * @param {Map<string, import("./container.js").Section>} sections
 * @param {string} tag
 */
function required(sections, tag) {
  const section = sections.get(tag);
  if (!section) throw new SecError("a section is missing", { expected: tag });
  return section;
}

/**
 * @param {Uint8Array} bytes
 * @returns {Record<string, any>}
 */
function readAbout(bytes) {
  let about;
  try {
    about = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new SecError("a damaged section", { where: "ABOU", found: error });
  }
  if (about === null || typeof about !== "object" || Array.isArray(about)) {
    throw new SecError("a damaged section", { where: "ABOU", expected: "an object" });
  }
  return about;
}

/**
 * @param {Uint8Array} stored
 * @param {import("./table.js").Entry[]} entries
 */
function decodeTensors(stored, entries) {
  const coder = new RangeCoder(stored);
  const banks = new Banks();
  /** @type {Uint8Array[]} */
  const tensors = [];
  for (const { type, shape, factors } of entries) {
    tensors.push(
      factors
        ? multiply(tensors[factors[0]], tensors[factors[1]])
        : decodeTensor(coder, banks, type, shape),
    );
  }
  coder.finish();
  return tensors;
}

/**
 * Put each tensor after its gap.
 *
 * @param {{ entries: import("./table.js").Entry[], rest: Uint8Array }} table
 * @param {Uint8Array[]} tensors
 * @param {number} size Bytes of all tensors.
 */
function join({ entries, rest }, tensors, size) {
  const onnx = new Uint8Array(rest.length + size);
  let from = 0;
  let to = 0;
  entries.forEach(({ gap }, i) => {
    onnx.set(rest.subarray(from, from + gap), to);
    onnx.set(tensors[i], to + gap);
    from += gap;
    to += gap + tensors[i].length;
  });
  onnx.set(rest.subarray(from), to);
  return onnx;
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
