/** Inputs are checked before ONNX Runtime sees them, with the words that Python has. */
export type Tensor = import("./tensors.js").Tensor;
export type TensorSpec = import("./package.js").TensorSpec;
export type Signature = import("./package.js").Signature;
export type Sizes = Record<string, number>;
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
export declare function checkInputs(signature: Signature, inputs: Record<string, Tensor>): Record<string, Tensor>;
