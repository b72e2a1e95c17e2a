/** Arrays with a dtype and a shape, as onnxruntime's own `Tensor` has them: `type`, `dims`, `data`. */

import { InputError } from "./errors.js";

/**
 * @typedef {"bool" | "uint8" | "int8" | "int32" | "int64" | "float16" | "float32" | "float64"} Dtype
 * @typedef {Uint8Array | Int8Array | Int32Array | BigInt64Array | Uint16Array | Float32Array | Float64Array} Values
 * @typedef {{ readonly type: Dtype, readonly dims: readonly number[], readonly data: Values }} Tensor
 */

/** What holds the values of a dtype; a float16 is its 16 bits. */
const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  int32: Int32Array,
  int64: BigInt64Array,
  float16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** @type {Dtype[]} */
export const DTYPES = /** @type {any} */ (Object.keys(ARRAYS));

/**
 * A tensor of `values` in row-major order; numbers and booleans become what the dtype holds.
 * @param {Dtype} type
 * @param {Values | readonly (number | bigint | boolean)[]} values
 * @param {readonly number[]} dims
 * @returns {Tensor}
 * Throws InputError for a dtype that is not known and for another number of values than `dims` has room for.
 */
export function tensor(type, values, dims) {
  if (!(type in ARRAYS)) throw new InputError(`dtype ${type} is not one of ${DTYPES.join(", ")}`);
  if (values.length !== count(dims)) {
    throw new InputError(`${values.length} values do not fill the shape (${dims.join(", ")})`);
  }
  const kind = ARRAYS[type];
  if (values instanceof kind) return { type, dims, data: values };
  if (type === "int64") return { type, dims, data: BigInt64Array.from(/** @type {any[]} */ (values), BigInt) };
  return { type, dims, data: /** @type {any} */ (kind).from(values, Number) };
}

/**
 * A tensor with the same value everywhere.
 * @param {Dtype} type
 * @param {readonly number[]} dims
 * @param {number} [value]
 * @returns {Tensor}
 */
export function filled(type, dims, value = 0) {
  const data = new ARRAYS[type](count(dims));
  if (value !== 0) /** @type {any} */ (data).fill(type === "int64" ? BigInt(value) : value);
  return { type, dims, data };
}

/**
 * How many values a shape has room for.
 * @param {readonly number[]} dims
 */
export function count(dims) {
  return dims.reduce((product, size) => product * size, 1);
}

/**
 * Value number `index` as a number; a float16 is widened.
 * @param {Tensor} array
 * @returns {Float64Array}
 */
export function toNumbers(array) {
  if (array.type === "float16" && array.data instanceof Uint16Array) return Float64Array.from(array.data, widened);
  return Float64Array.from(/** @type {any} */ (array.data), Number);
}

/** @param {number} bits of a float16 */
function widened(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
