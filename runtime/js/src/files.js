/** Where the files of a package come from: a folder on the disk (Node), or an address. */

import { PackageError } from "./errors.js";

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
export async function filesAt(place) {
  const text = String(place);
  const remote = /^(https?|blob|data):/.test(text) || typeof process === "undefined" || !process.versions?.node;
  return remote ? address(new URL(text.endsWith("/") ? text : `${text}/`, globalThis.location?.href)) : folder(place);
}

/**
 * @param {string | URL} place
 * @returns {Promise<Files>}
 */
async function folder(place) {
  const [{ createReadStream, promises }, { createHash }, { join }, { fileURLToPath }] = await Promise.all([
    import("node:fs"),
    import("node:crypto"),
    import("node:path"),
    import("node:url"),
  ]);
  const root = String(place).startsWith("file:") ? fileURLToPath(place) : String(place);
  /** @param {string} file throws PackageError for a symbolic link that leads out of the folder */
  async function inside(file) {
    const [folder, target] = await Promise.all([promises.realpath(root), promises.realpath(join(root, file))]);
    if (!target.startsWith(join(folder, "/"))) {
      throw new PackageError(`${root}: '${file}' leads out of the package; it is refused`);
    }
    return join(root, file);
  }
  return {
    name: root,
    path: (file) => join(root, file),
    async read(file) {
      try {
        const bytes = await promises.readFile(await inside(file));
        return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
      } catch (error) {
        if (error instanceof PackageError) throw error;
        throw missing(root, file, /** @type {any} */ (error).code ?? String(error));
      }
    },
    async digest(file) {
      const hash = createHash("sha256");
      try {
        for await (const piece of createReadStream(await inside(file), { highWaterMark: 1 << 20 })) hash.update(piece);
      } catch (error) {
        if (error instanceof PackageError) throw error;
        throw missing(root, file, /** @type {any} */ (error).code ?? String(error));
      }
      return hash.digest("hex");
    },
  };
}

/**
 * @param {URL} root
 * @returns {Files}
 */
function address(root) {
  return {
    name: root.href.replace(/\/$/, ""),
    path: () => null,
    async read(file, progress = () => {}) {
      const response = await fetch(new URL(file.split("/").map(encodeURIComponent).join("/"), root)).catch((error) => {
        throw missing(root.href, file, error.message);
      });
      if (!response.ok || !response.body) throw missing(root.href, file, `HTTP status ${response.status}`);
      return received(response, (done, total) => progress(done, total, file));
    },
    async digest(file, bytes) {
      const data = bytes ?? (await this.read(file));
      if (!globalThis.crypto?.subtle) {
        throw new PackageError("digests need a page that came by https or from localhost; serve it so, or load with digests: false");
      }
      const found = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
      return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
    },
  };
}

/**
 * The body of a response, in one piece of memory where its length was told.
 * @param {Response} response
 * @param {(done: number, total: number) => void} progress
 */
async function received(response, progress) {
  // A compressed body is longer than its Content-Length.
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length") ?? 0);
  let whole = new Uint8Array(total || 1 << 20);
  let done = 0;
  for (const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader(); ; ) {
    const { value } = await reader.read();
    if (!value) break;
    if (done + value.length > whole.length) {
      const larger = new Uint8Array(Math.max(2 * whole.length, done + value.length));
      larger.set(whole.subarray(0, done));
      whole = larger;
    }
    whole.set(value, done);
    done += value.length;
    progress(done, total);
  }
  return done === whole.length ? whole : whole.slice(0, done);
}

/** @param {string} root @param {string} file @param {string} why */
function missing(root, file, why) {
  return file === "isoformer.json"
    ? new PackageError(`${root} is not a package: ${file} cannot be read (${why}); make one with: isoformer export`)
    : new PackageError(`${root} is broken: ${file} cannot be read (${why}); export it again or copy it whole`);
}
