/** A static file server on this machine alone, with the headers that WebAssembly threads need. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, resolve, sep } from "node:path";

/** @type {Record<string, string>} */
const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".mjs": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};
const HEADERS = {
  "Cache-Control": "no-store",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
};

/**
 * Serves folders under paths, such as { "/": "js", "/package/": "minilm" }; the longest path that fits wins.
 * @param {Record<string, string>} folders
 * @returns {Promise<{ url: string, close: () => void }>}
 */
export async function serve(folders) {
  const roots = Object.entries(folders).sort(([a], [b]) => b.length - a.length);
  const server = createServer(async (request, response) => {
    const file = await found(roots, request.url ?? "/");
    if (!file) {
      response.writeHead(404, HEADERS).end();
      return;
    }
    const type = TYPES[extname(file.path)] ?? "application/octet-stream";
    response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": file.size });
    createReadStream(file.path).on("error", () => response.destroy()).pipe(response);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", () => done(undefined)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  return {
    url: `http://127.0.0.1:${port}`,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

/**
 * @param {[string, string][]} roots
 * @param {string} url
 */
async function found(roots, url) {
  try {
    const path = decodeURIComponent(new URL(url, "http://localhost").pathname);
    const root = roots.find(([prefix]) => path.startsWith(prefix));
    if (!root) return null;
    const folder = resolve(root[1]);
    const file = normalize(join(folder, path.slice(root[0].length)));
    if (file !== folder && !file.startsWith(folder + sep)) return null;
    const about = await stat(file);
    return about.isFile() ? { path: file, size: about.size } : null;
  } catch {
    return null; // no such file, or no such name
  }
}
