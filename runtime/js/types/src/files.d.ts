/** Where the files of a package come from: a folder on the disk (Node), or an address. */
export type Progress = (done: number, total: number, file: string) => void;
export type Files = {
    name: string;
    read: (file: string, progress?: Progress) => Promise<Uint8Array<ArrayBuffer>>;
    digest: (file: string, bytes: Uint8Array<ArrayBuffer> | null) => Promise<string>;
    path: (file: string) => string | null;
};
/**
 * Called with the bytes that have come, and of how many, 0 where that is not known.
 * @typedef {(done: number, total: number, file: string) => void} Progress
 *
 * name: what errors call the place. read: a file whole. digest: its SHA-256. path: where it lies on the disk, null
 * for what does not.
 * @typedef {{
 *   name: string,
 *   read: (file: string, progress?: Progress) => Promise<Uint8Array<ArrayBuffer>>,
 *   digest: (file: string, bytes: Uint8Array<ArrayBuffer> | null) => Promise<string>,
 *   path: (file: string) => string | null,
 * }} Files
 */
/**
 * The files at a place: a folder's name or a file: URL in Node, any other URL by `fetch`.
 * @param {string | URL} place
 * @returns {Promise<Files>}
 */
export declare function filesAt(place: string | URL): Promise<Files>;
