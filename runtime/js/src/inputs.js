/** Inputs are checked before ONNX Runtime sees them, with the words that Python has. */

import { InputError } from "./errors.js";
import { count, filled, tensor, toNumbers } from "./tensors.js";

/**
 * @typedef {import("./tensors.js").Tensor} Tensor
 * @typedef {import("./package.js").TensorSpec} TensorSpec
 * @typedef {import("./package.js").Signature} Signature
 * @typedef {Record<string, number>} Sizes of named axes
 */

/**
 * The arrays to feed: every one checked, masks converted, defaults filled in. Throws InputError.
 * @param {Signature} signature
 * @param {Record<string, Tensor>} inputs
 * @returns {Record<string, Tensor>}
 */
export function checkInputs(signature, inputs) {
  const specs = new Map(signature.inputs.map((spec) => [spec.name, spec]));
  const unknown = Object.keys(inputs).filter((name) => !specs.has(name));
  if (unknown.length) throw new InputError(`there is no input ${unknown.sort().join(", ")}; there are ${[...specs.keys()].join(", ")}`);
  /** @type {Sizes} */
  const sizes = {};
  /** @type {Record<string, Tensor>} */
  const feeds = {};
  const absent = [];
  for (const spec of signature.inputs) {
    if (Object.hasOwn(inputs, spec.name)) feeds[spec.name] = checked(spec, inputs[spec.name], sizes, signature.axes);
    else if (spec.default === null) throw new InputError(`the input ${spec.name} is missing; it is ${described(spec)}`);
    else absent.push(spec);
  }
  for (const [axis, parts] of Object.entries(signature.sums)) checkSum(axis, parts, sizes, signature.axes);
  for (const [name, array] of Object.entries(feeds)) checkRange(/** @type {TensorSpec} */ (specs.get(name)), array, sizes);
  for (const spec of absent) {
    const unbound = spec.axes.filter((axis) => typeof axis === "string" && !(axis in sizes));
    if (unbound.length) throw new InputError(`the input ${spec.name} is missing, and nothing tells its ${unbound.join(", ")}`);
    const dims = spec.axes.map((axis) => (typeof axis === "string" ? sizes[axis] : axis));
    feeds[spec.name] = filled(spec.dtype, dims, /** @type {number} */ (spec.default));
  }
  return feeds;
}

/**
 * @param {string} axis
 * @param {string[]} parts that add up to it
 * @param {Sizes} sizes
 * @param {Signature["axes"]} axes
 */
function checkSum(axis, parts, sizes, axes) {
  const different = [...new Set(parts)];
  if (parts.every((part) => part in sizes)) {
    const total = parts.reduce((sum, part) => sum + sizes[part], 0);
    sizes[axis] ??= total;
    if (sizes[axis] === total) return;
    const terms = different.map((part) => {
      const times = parts.filter((other) => other === part).length;
      return `${times > 1 ? `${times} × ` : ""}${part} ${sizes[part]}`;
    });
    throw new InputError(`${axis} is ${sizes[axis]}; ${terms.join(" + ")} is ${total}`);
  }
  if (!(axis in sizes) || different.length !== 1) return; // no input has the part itself
  const [low, high] = axes[different[0]];
  const size = sizes[axis] / parts.length;
  if (!Number.isInteger(size) || size < low || (high !== null && size > high)) {
    const upwards = high === null ? "up" : `to ${high * parts.length}`;
    throw new InputError(`${axis} is ${sizes[axis]}; it is a multiple of ${parts.length}, from ${low * parts.length} ${upwards}`);
  }
  sizes[different[0]] = size;
}

/**
 * @param {TensorSpec} spec
 * @param {Tensor} array
 * @param {Sizes} sizes which it adds to
 * @param {Signature["axes"]} axes
 * @returns {Tensor}
 */
function checked(spec, array, sizes, axes) {
  if (!array || !Array.isArray(array.dims) || !ArrayBuffer.isView(array.data)) {
    throw new InputError(`${spec.name} is no tensor; pass tensor(dtype, values, dims), ${described(spec)}`);
  }
  const shape = `(${array.dims.join(", ")})`;
  if (array.data.length !== count(array.dims)) {
    throw new InputError(`${spec.name} has ${array.data.length} values, which do not fill its shape ${shape}`);
  }
  if (array.dims.length !== spec.axes.length) {
    throw new InputError(`${spec.name} has ${array.dims.length} axes, ${shape}; it is ${described(spec)}`);
  }
  spec.axes.forEach((axis, place) => {
    const size = array.dims[place];
    if (typeof axis === "number") {
      if (size !== axis) throw new InputError(`${spec.name} has shape ${shape}; it is ${described(spec)}`);
      return;
    }
    sizes[axis] ??= size;
    if (sizes[axis] !== size) throw new InputError(`${spec.name} has ${axis} ${size}, but an earlier input has ${sizes[axis]}`);
    const [low, high] = axes[axis];
    if (size < low) throw new InputError(`${spec.name} has shape ${shape}: ${axis} is ${size}, the least is ${low}`);
    if (high !== null && size > high) {
      throw new InputError(`${spec.name} has ${axis} ${size}; this model takes ${high} at most: truncate or split`);
    }
  });
  if (spec.kind === "mask") return mask(spec, array);
  if (array.type !== spec.dtype) throw new InputError(`${spec.name} has dtype ${array.type}; it is ${described(spec)}`);
  return array;
}

/**
 * The mask in the graph's dtype: the contract takes 0 and 1 of any dtype, and nothing else.
 * @param {TensorSpec} spec
 * @param {Tensor} array
 * @returns {Tensor}
 */
function mask(spec, array) {
  const values = toNumbers(array);
  if (!values.every((value) => value === 0 || value === 1)) {
    throw new InputError(`${spec.name} holds values other than 0 and 1; 1 means that a key takes part`);
  }
  return array.type === spec.dtype ? array : tensor(spec.dtype, [...values], array.dims);
}

/**
 * Throws InputError for integers out of their range, which for those along an axis ends with its size.
 * @param {TensorSpec} spec
 * @param {Tensor} array
 * @param {Sizes} sizes
 */
function checkRange(spec, array, sizes) {
  if (spec.kind === "mask" || (spec.kind === "value" && (spec.high === null || spec.dtype.startsWith("float")))) return;
  if (array.data.length === 0) return;
  let most = spec.high === null ? null : spec.high - 1;
  if (spec.along !== null) {
    const size = sizes[spec.along] ?? null;
    most = size !== null && spec.kind === "indices" ? size - 1 : size;
  }
  let least = array.data[0];
  let largest = least;
  for (const value of array.data) {
    if (value < least) least = value;
    if (value > largest) largest = value;
  }
  if (least >= spec.low && (most === null || largest <= most)) return;
  const upwards = most === null ? "up" : `to ${most}`;
  throw new InputError(`${spec.name} holds values from ${least} to ${largest}; they go from ${spec.low} ${upwards}`);
}

/** @param {TensorSpec} spec */
function described(spec) {
  return `${spec.dtype} (${spec.axes.join(", ")})`;
}
