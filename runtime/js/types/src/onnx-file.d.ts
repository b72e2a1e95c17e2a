/**
 * Just enough of ONNX's file format to read tensors and the names of external files.
 *
 * An ONNX file is a protocol-buffer message: a run of (field number, wire type, value). The field numbers are those
 * of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
 */
export type Tensor = import("./tensors.js").Tensor;
/**
 * The array in a TensorProto file, such as input_0.pb of a test data set, and the name that it has there.
 * @param {Uint8Array} bytes
 * @param {string} file what errors call it
 * @returns {Tensor & { name: string }}
 * Throws PackageError when the file is not a tensor with raw data of a known type.
 */
export declare function readTensor(bytes: Uint8Array, file: string): Tensor & {
    name: string;
};
/**
 * The locations of all external data that the model refers to, as written in it.
 * @param {Uint8Array} bytes of the model
 * @param {string} file what errors call it
 * @returns {string[]}
 */
export declare function externalFiles(bytes: Uint8Array, file: string): string[];
