/** Headless Chromium, driven by playwright-core. */

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { IsoformerError, firstLine } from "./errors.js";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
const MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome";
// No sandbox, as containers have none for root; nothing that is opened comes from elsewhere.
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"];

/**
 * The browser's file: CHROME of the environment, else what is on the PATH. Throws IsoformerError when there is none.
 * @returns {string}
 */
export function chromium() {
  const named = process.env.CHROME;
  const folders = (process.env.PATH ?? "").split(delimiter).filter(Boolean);
  const places = named ? [named] : [...NAMES.flatMap((name) => folders.map((folder) => join(folder, name))), MAC];
  const file = places.find(isExecutable);
  if (file) return file;
  const why = named ? `CHROME=${named} is not a program` : "there is no Chromium here";
  throw new IsoformerError(`${why}: install one (on Debian: apt-get install chromium), or name its file: CHROME=/path/to/chrome`);
}

/**
 * A browser; close it.
 * @param {readonly string[]} [flags] more of them
 */
export async function launch(flags = []) {
  const { chromium: driver } = await import("playwright-core");
  const executablePath = chromium();
  try {
    return await driver.launch({ executablePath, args: [...FLAGS, ...flags] });
  } catch (error) {
    throw new IsoformerError(`${executablePath} does not start: ${firstLine(error)}`);
  }
}

/** @param {string} file */
function isExecutable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
