/**
 * Whether products of 8 bits are right on this processor, as `isoformer.runtime.saturation` finds it in Python.
 *
 * x86 processors without VNNI add the products of unsigned and signed bytes in pairs, in 16 bits: above 32767 the sum
 * stays there. ONNX Runtime's exact kernels are taken only where its option says so. WebAssembly's are exact.
 */
/** ONNX Runtime's option for exact products, below `session`. */
export declare const EXACT: {
    x64quantprecision: string;
};
/**
 * Whether the default kernels saturate here, found by the largest product that there is.
 * @param {import("./engine.js").Ort} ort
 * @param {import("onnxruntime-common").InferenceSession.SessionOptions} [options]
 */
export declare function productsSaturate(ort: import("./engine.js").Ort, options?: import("onnxruntime-common").InferenceSession.SessionOptions): Promise<boolean>;
