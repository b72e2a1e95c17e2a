/**
 * Whether products of 8 bits are right on this processor, as `isoformer.runtime.saturation` finds it in Python.
 *
 * x86 processors without VNNI add the products of unsigned and signed bytes in pairs, in 16 bits: above 32767 the sum
 * stays there. ONNX Runtime's exact kernels are taken only where its option says so. WebAssembly's are exact.
 */

/** ONNX Runtime's option for exact products, below `session`. */
export const EXACT = { x64quantprecision: "1" };

// y = MatMulInteger(a, b), a uint8 (2, 4), b int8 (4, 1), opset 10, as onnx writes it.
const PRODUCT =
  "\b\b:\\\n\x18\n\x01a\n\x01b\x12\x01y\"\rMatMulInteger\x12\x01g" +
  "Z\x13\n\x01a\x12\x0e\n\f\b\x02\x12\b\n\x02\b\x02\n\x02\b\x04" +
  "Z\x13\n\x01b\x12\x0e\n\f\b\x03\x12\b\n\x02\b\x04\n\x02\b\x01" +
  "b\x13\n\x01y\x12\x0e\n\f\b\x06\x12\b\n\x02\b\x02\n\x02\b\x01B\x04\n\0\x10\n";

/**
 * Whether the default kernels saturate here, found by the largest product that there is.
 * @param {import("./engine.js").Ort} ort
 * @param {import("onnxruntime-common").InferenceSession.SessionOptions} [options]
 */
export async function productsSaturate(ort, options = {}) {
  const model = Uint8Array.from(PRODUCT, (character) => character.charCodeAt(0));
  const session = await ort.InferenceSession.create(model, { logSeverityLevel: 4, intraOpNumThreads: 1, ...options });
  const a = new ort.Tensor("uint8", new Uint8Array(8).fill(255), [2, 4]);
  const b = new ort.Tensor("int8", new Int8Array(4).fill(127), [4, 1]);
  const { y } = await session.run({ a, b });
  await session.release();
  return /** @type {Int32Array} */ (y.data).some((value) => value !== 4 * 255 * 127);
}
