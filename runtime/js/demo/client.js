/** The worker that computes, as functions that answer with promises, so that the page stays quick. */

let last = 0;

export class Client {
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    /** @type {Map<number, { done: (value: any) => void, failed: (error: Error) => void, told: (event: any) => void }>} */
    this.waiting = new Map();
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => {
      for (const { failed } of this.waiting.values()) failed(new Error(event.message || "the worker did not start"));
    };
  }

  /**
   * Calls a function of worker.js. told: what it says while it works.
   * @param {string} name
   * @param {any} [given]
   * @param {(event: any) => void} [told]
   * @returns {Promise<any>}
   */
  call(name, given, told = () => {}) {
    const id = (last += 1);
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed, told });
      this.worker.postMessage({ id, name, given });
    });
  }

  /** @param {{ id: number, value?: any, error?: string, event?: any }} message */
  receive({ id, value, error, event }) {
    const call = this.waiting.get(id);
    if (!call) return;
    if (event !== undefined) {
      call.told(event);
      return;
    }
    this.waiting.delete(id);
    if (error === undefined) call.done(value);
    else call.failed(new Error(error));
  }
}
