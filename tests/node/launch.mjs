// Starts Chromium for the scripts of tests and benchmarks, without requests of its own.
import { chromium } from "playwright-core";

const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];

export const launch = (executablePath) => chromium.launch({ executablePath, args });
