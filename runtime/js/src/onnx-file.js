/**
 * Just enough of ONNX's file format to read tensors and the names of external files.
 *
 * An ONNX file is a protocol-buffer message: a run of (field number, wire type, value). The field numbers are those
 * of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
 */

import { PackageError } from "./errors.js";
import { count } from "./tensors.js";

/** @typedef {import("./tensors.js").Tensor} Tensor */

/** TensorProto.data_type → dtype and the array that holds it. */
const DTYPES = /** @type {const} */ ({
  1: ["float32", Float32Array],
  2: ["uint8", Uint8Array],
  3: ["int8", Int8Array],
  6: ["int32", Int32Array],
  7: ["int64", BigInt64Array],
  9: ["bool", Uint8Array],
  10: ["float16", Uint16Array],
  11: ["float64", Float64Array],
});

/**
 * The messages in which tensors stand: kind → {field number: kind of the message in it}.
 * @type {Record<string, Record<number, string>>}
 */
const CHILDREN = {
  model: { 7: "graph", 20: "training", 25: "function" },
  training: { 1: "graph", 2: "graph" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  function: { 7: "node", 11: "attribute" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
  tensor: { 13: "external" },
  external: {},
};
const MAX_DEPTH = 64;
const MAX_AXES = 32;

/**
 * The array in a TensorProto file, such as input_0.pb of a test data set, and the name that it has there.
 * @param {Uint8Array} bytes
 * @param {string} file what errors call it
 * @returns {Tensor & { name: string }}
 * Throws PackageError when the file is not a tensor with raw data of a known type.
 */
export function readTensor(bytes, file) {
  /** @type {number[]} */
  const dims = [];
  let type = 0;
  let name = "";
  let raw = new Uint8Array();
  for (const [number, value] of fields(bytes, file)) {
    if (number === 1) dims.push(...(typeof value === "number" ? [value] : packed(value.subarray(0, 10 * MAX_AXES + 1), file)));
    else if (number === 2 && typeof value === "number") type = value;
    else if (number === 8 && typeof value !== "number") name = text(value);
    else if (number === 9 && typeof value !== "number") raw = new Uint8Array(value);
  }
  if (dims.length > MAX_AXES) throw new PackageError(`${file} holds a tensor of more than ${MAX_AXES} axes`);
  if (!(type in DTYPES)) throw new PackageError(`${file} holds a tensor of ONNX type ${type}, which is not supported`);
  const [dtype, kind] = DTYPES[/** @type {keyof typeof DTYPES} */ (type)];
  if (dims.some((d) => d < 0) || count(dims) * kind.BYTES_PER_ELEMENT !== raw.length) {
    throw new PackageError(`${file} holds ${raw.length} bytes, which is not a ${dtype} tensor of shape (${dims.join(", ")})`);
  }
  return { name, type: dtype, dims, data: new kind(raw.slice().buffer) };
}

/**
 * The locations of all external data that the model refers to, as written in it.
 * @param {Uint8Array} bytes of the model
 * @param {string} file what errors call it
 * @returns {string[]}
 */
export function externalFiles(bytes, file) {
  /** @type {Set<string>} */
  const found = new Set();
  /** @type {[string, Uint8Array, number][]} */
  const stack = [["model", bytes, 0]];
  for (let next = stack.pop(); next; next = stack.pop()) {
    const [kind, message, depth] = next;
    /** @type {Record<number, string>} */
    const entry = {};
    for (const [number, value] of fields(message, file)) {
      if (typeof value === "number") continue;
      const child = CHILDREN[kind][number];
      if (kind === "external") entry[number] = text(value);
      else if (child && depth === MAX_DEPTH) throw new PackageError(`${file} nests graphs more than ${MAX_DEPTH} deep`);
      else if (child) stack.push([child, value, depth + 1]);
    }
    if (entry[1] === "location") found.add(entry[2] ?? "");
  }
  return [...found];
}

/**
 * The fields of one message: a number for a varint, else the bytes.
 * @param {Uint8Array} message
 * @param {string} file
 * @returns {Generator<[number, number | Uint8Array]>}
 */
function* fields(message, file) {
  let at = 0;
  while (at < message.length) {
    let key, value;
    [key, at] = varint(message, at, file);
    const wire = key % 8;
    const number = Math.floor(key / 8);
    // protobuf reads 32 bits of a key, and so another field than is written here.
    if (number < 1 || key >= 2 ** 32) throw new PackageError(`${file} is not an ONNX file (there is no field ${number})`);
    if (wire === 0) {
      [value, at] = varint(message, at, file);
      yield [number, value];
      continue;
    }
    let size = wire === 1 ? 8 : 4;
    if (wire === 2) [size, at] = varint(message, at, file);
    else if (wire !== 1 && wire !== 5) throw new PackageError(`${file} is not an ONNX file (wire type ${wire})`);
    if (size < 0 || at + size > message.length) throw new PackageError(`${file} is cut short`);
    yield [number, message.subarray(at, at + size)];
    at += size;
  }
}

/**
 * A number of up to 64 bits, signed, and the place behind it. Above 2**53 it is not exact, which no size is.
 * @param {Uint8Array} message
 * @param {number} at
 * @param {string} file
 * @returns {[number, number]}
 */
function varint(message, at, file) {
  let value = 0;
  for (let shift = 0; shift < 70; shift += 7) {
    if (at >= message.length) throw new PackageError(`${file} is cut short`);
    const byte = message[at++];
    value += (byte & 127) * 2 ** shift;
    if (byte < 128) return [value < 2 ** 63 ? value : value - 2 ** 64, at];
  }
  throw new PackageError(`${file} is not an ONNX file (a number of more than 10 bytes)`);
}

/** @param {Uint8Array} values @param {string} file */
function packed(values, file) {
  const numbers = [];
  for (let at = 0, number; at < values.length; ) {
    [number, at] = varint(values, at, file);
    numbers.push(number);
  }
  return numbers;
}

/** @param {Uint8Array} bytes */
function text(bytes) {
  // A view on shared memory is refused by TextDecoder.
  return new TextDecoder().decode(new Uint8Array(bytes));
}
