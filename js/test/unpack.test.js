import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { SecError, unpack } from "../src/index.js";
import { crc32 } from "../src/container.js";
import { unpackLzma2 } from "../src/lzma2.js";

const ROOT = new URL("../../", import.meta.url).pathname;
const TINY = readFileSync(`${ROOT}tests/golden/tiny.sec`);
const FILES = ["results", "tests/golden"].flatMap((folder) =>
  readdirSync(ROOT + folder, { recursive: true })
    .filter((name) => String(name).endsWith(".sec"))
    .map((name) => `${ROOT}${folder}/${name}`),
);

test("there are files to decode", () => assert.ok(FILES.length >= 2));

for (const path of FILES) {
  test(`${path.slice(ROOT.length)} decodes to the network it states, in under 3 s`, async () => {
    const before = process.cpuUsage(); // which other work on the machine does not lengthen
    const { onnx, about } = await unpack(readFileSync(path));
    const { user, system } = process.cpuUsage(before);
    assert.ok(user + system < 3e6);
    assert.equal(onnx.length, about.onnx_bytes);
    assert.equal(createHash("sha256").update(onnx).digest("hex"), about.onnx_sha256);
  });
}

test("an ArrayBuffer is decoded like its bytes", async () => {
  const buffer = new Uint8Array(TINY).buffer;
  assert.deepEqual((await unpack(buffer)).onnx, (await unpack(TINY)).onnx);
});

/** Set the header's checksums anew, so that what lies behind them is tested. */
function sealed(/** @type {Uint8Array} */ bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint16(10, true);
  let start = 16 + 16 * count;
  for (let i = 0; i < count; i++) {
    const stored = view.getUint32(12 + 16 * i + 4, true);
    view.setUint32(12 + 16 * i + 12, crc32(bytes.subarray(start, start + stored)), true);
    start += stored;
  }
  view.setUint32(12 + 16 * count, crc32(bytes.subarray(0, 12 + 16 * count)), true);
  return bytes;
}

function changed(/** @type {(view: DataView) => void} */ change) {
  const bytes = new Uint8Array(TINY);
  change(new DataView(bytes.buffer));
  return bytes;
}

const DAMAGED = {
  "another magic": [changed((v) => v.setUint8(0, 0)), /not a \.sec file/],
  "a newer version": [changed((v) => v.setUint16(8, 2, true)), /newer version/],
  "no section": [changed((v) => v.setUint16(10, 0, true)), /damaged header/],
  "seventeen sections": [changed((v) => v.setUint16(10, 17, true)), /damaged header/],
  "another header checksum": [changed((v) => v.setUint8(20, 1)), /damaged header/],
  "half of it": [TINY.subarray(0, TINY.length >> 1), /not complete/],
  "one byte more": [Buffer.concat([TINY, Buffer.of(0)]), /not complete/],
  "another byte in a section": [changed((v) => v.setUint8(v.byteLength - 1, 1)), /damaged section/],
  "an unknown section": [sealed(changed((v) => v.setUint8(12, 88))), /unknown section/],
};

for (const [name, [bytes, message]] of Object.entries(DAMAGED)) {
  test(`a file with ${name} is refused`, async () => {
    await assert.rejects(unpack(bytes), (error) => {
      assert.ok(error instanceof SecError);
      assert.match(error.message, message);
      return true;
    });
  });
}

test("a claim of two gigabytes is refused before anything is unpacked", async () => {
  const rest = 12 + 16 + 8;
  const bytes = sealed(changed((v) => v.setUint32(rest, 2 ** 31 - 1, true)));
  await assert.rejects(unpack(bytes), /larger than allowed/);
});

test("less may be allowed", async () => {
  await assert.rejects(unpack(TINY, { limit: 1000 }), /larger than allowed/);
});

test("no damaged byte is decoded to another network", async () => {
  const { onnx } = await unpack(TINY);
  for (let i = 0; i < 60; i++) {
    const at = 64 + ((i * 7919) % (TINY.length - 64));
    const bytes = sealed(changed((v) => v.setUint8(at, v.getUint8(at) ^ (1 << (i % 8)))));
    const result = await unpack(bytes).catch((error) => error);
    if (!(result instanceof SecError)) assert.deepEqual(result.onnx, onnx, `byte ${at}`);
  }
});

test("LZMA2 that ends early or goes on is refused", () => {
  const plain = Uint8Array.of(1, 0, 2, 65, 66, 67, 0);
  assert.deepEqual(unpackLzma2(plain, 3), Uint8Array.of(65, 66, 67));
  assert.throws(() => unpackLzma2(plain, 2), SecError);
  assert.throws(() => unpackLzma2(plain, 4), SecError);
  assert.throws(() => unpackLzma2(plain.subarray(0, 6), 3), SecError);
  assert.throws(() => unpackLzma2(Uint8Array.of(...plain, 0), 3), SecError);
});
