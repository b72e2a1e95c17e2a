/** Arrays with a dtype and a shape, as onnxruntime's own `Tensor` has them: `type`, `dims`, `data`. */
export type Dtype = "bool" | "uint8" | "int8" | "int32" | "int64" | "float16" | "float32" | "float64";
export type Values = Uint8Array | Int8Array | Int32Array | BigInt64Array | Uint16Array | Float32Array | Float64Array;
export type Tensor = {
    readonly type: Dtype;
    readonly dims: readonly number[];
    readonly data: Values;
};
/** @type {Dtype[]} */
export declare const DTYPES: Dtype[];
/**
 * A tensor of `values` in row-major order; numbers and booleans become what the dtype holds.
 * @param {Dtype} type
 * @param {Values | readonly (number | bigint | boolean)[]} values
 * @param {readonly number[]} dims
 * @returns {Tensor}
 * Throws InputError for a dtype that is not known and for another number of values than `dims` has room for.
 */
export declare function tensor(type: Dtype, values: Values | readonly (number | bigint | boolean)[], dims: readonly number[]): Tensor;
/**
 * A tensor with the same value everywhere.
 * @param {Dtype} type
 * @param {readonly number[]} dims
 * @param {number} [value]
 * @returns {Tensor}
 */
export declare function filled(type: Dtype, dims: readonly number[], value?: number): Tensor;
/**
 * How many values a shape has room for.
 * @param {readonly number[]} dims
 */
export declare function count(dims: readonly number[]): number;
/**
 * Value number `index` as a number; a float16 is widened.
 * @param {Tensor} array
 * @returns {Float64Array}
 */
export declare function toNumbers(array: Tensor): Float64Array;
