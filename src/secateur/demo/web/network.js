/** Networks that run in this page: a `.sec` or `.onnx` file and onnxruntime-web. */
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { unpack } from "./sec/index.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };

export class Network {
  /**
   * @param {ort.InferenceSession} session
   * @param {number} bytes Of the downloaded file.
   * @param {number[]} shape Of the input, for one image.
   */
  constructor(session, bytes, shape) {
    this.session = session;
    this.bytes = bytes;
    this.shape = shape;
  }

  /**
   * Download, decode and load a network.
   *
   * @param {string} url Of a `.sec` or `.onnx` file.
   * @param {number[]} shape Of the input, for one image: [1, channels, height, width].
   */
  static async open(url, shape) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`cannot load ${url}: ${response.status}`);
    const file = new Uint8Array(await response.arrayBuffer());
    const onnx = url.endsWith(".sec") ? (await unpack(file)).onnx : file;
    const session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"] });
    return new Network(session, file.length, shape);
  }

  /**
   * @param {Float32Array} tensor Of the input's shape.
   * @returns {Promise<Float32Array>} One logit for each class.
   */
  async logits(tensor) {
    const [input] = this.session.inputNames;
    const [output] = this.session.outputNames;
    const results = await this.session.run({ [input]: new ort.Tensor("float32", tensor, this.shape) });
    return /** @type {Float32Array} */ (results[output].data);
  }

  /**
   * Classify, several times, for a median time.
   *
   * @param {Float32Array} tensor
   * @param {number} repeats
   * @returns {Promise<{ probabilities: number[], milliseconds: number }>}
   */
  async classify(tensor, repeats) {
    let logits = new Float32Array();
    const times = [];
    for (let i = 0; i < repeats; i++) {
      const start = performance.now();
      logits = await this.logits(tensor);
      times.push(performance.now() - start);
    }
    times.sort((a, b) => a - b);
    return { probabilities: softmax(logits), milliseconds: times[times.length >> 1] };
  }
}

/**
 * @param {Float32Array} logits
 * @returns {number[]} They sum to 1.
 */
export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
