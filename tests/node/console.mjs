// Uses the console as people would, in a real browser, and prints its findings as JSON:
// console.mjs CHROMIUM URL KEY RECORDED_KEY PICTURES. Lines that begin with ">" ask the test to change the upstream.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { launch } from "./launch.mjs";

const [executablePath, base, key, lockedKey, pictures] = process.argv.slice(2);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf-8");
const browser = await launch(executablePath);
const TIMEOUT = 90_000; // milliseconds; of a slow machine
const seen = { origins: [], complaints: [], violations: {}, overflow: {} };

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 1000 }, bypassCSP: false, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  page.on("request", (request) => seen.origins.push(new URL(request.url()).origin));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("console", (message) => message.text().includes("Content Security Policy") && seen.complaints.push(message.text()));
  return page;
}

async function signIn(page, credential, address = "/console") {
  await page.goto(base + address);
  await page.locator("#key").fill(credential);
  await page.keyboard.press("Enter");
}

const rows = (page) => page.locator(".calls tbody tr:not([aria-hidden])");
const figure = (page, name) => page.locator(".figures > div", { hasText: name }).locator("dd");

async function ready(page) {
  await rows(page).first().waitFor();
  await page.locator(".figures dd").first().waitFor();
  await page.locator(".chart[aria-busy=false] canvas").waitFor();
}

// Accessibility, by axe-core, which the page's own policy would not let in.
async function judge(page, name) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  seen.violations[name] = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
  seen.overflow[name] = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: name !== "call" });
}

// Asks the test, which runs the upstream, to change it.
function ask(word) {
  console.log(`> ${word}`);
}

const get = async (path, credential = key) => (await fetch(base + path, { headers: { "X-API-Key": credential } })).json();

// Sign in: a wrong key is told, the right one stays out of the address.
const page = await open();
await signIn(page, "cbg_wrong");
await page.getByRole("alert").waitFor();
seen.rejected = await page.getByRole("alert").textContent();
await judge(page, "sign-in");
await page.locator("#key").fill(key);
await page.keyboard.press("Enter");
await ready(page);
seen.address = page.url();
await judge(page, "overview");

// Choose a client and a window; the figures are those of the API.
await page.locator("header details summary").click();
await page.locator("#client-search").fill("0101");
await page.getByRole("checkbox", { name: /8005550101/ }).check();
await page.keyboard.press("Escape");
await page.locator("#range").selectOption("yesterday");
await page.waitForURL(/client=8005550101.*range=yesterday/);
await ready(page);
const selection = new URL(page.url()).search.slice(1);
const total = (await get(`/calls/summary?${selection}`)).total;
await page.waitForFunction((calls) => document.querySelector(".figures dd")?.textContent.startsWith(calls), total.calls.toLocaleString("en-US"));
seen.calls = [(await figure(page, "Calls").textContent()).match(/^[\d,]+/)[0], total.calls.toLocaleString("en-US")];
seen.missedFigure = [(await figure(page, "Missed").textContent()).match(/^[\d,]+/)[0], total.missed.toLocaleString("en-US")];

// Zoom into the chart with the mouse, and go back.
const canvas = page.locator(".chart .u-over");
const box = await canvas.boundingBox();
await page.mouse.move(box.x + box.width * 0.4, box.y + 50);
await page.mouse.down();
await page.mouse.move(box.x + box.width * 0.7, box.y + 60, { steps: 5 });
await page.mouse.up();
await page.waitForURL(/start=.*end=/);
seen.zoomed = page.url();
await page.goBack();
await page.waitForURL(/range=yesterday/);
await ready(page);

// Filter; the chip removes the filter.
await page.locator("#filter-value").selectOption("no_answer");
await page.getByRole("button", { name: "Add filter" }).click();
await page.waitForURL(/result=no_answer/);
await ready(page);
await page.waitForFunction(() => [...document.querySelectorAll(".calls .result")].every((one) => one.textContent === "no answer"));
seen.results = [...new Set(await page.locator(".calls .result").allTextContents())];
await page.reload();
await ready(page);
seen.keptFilter = await page.locator(".chip").textContent();
await page.getByRole("button", { name: "Remove the filter Result" }).click();
await page.waitForURL((url) => !url.search.includes("result"));

// The parts: each as the API has it.
await page.locator("#tab-missed").click();
await page.locator("#panel table").waitFor();
const missed = await get(`/calls/missed?${selection}&limit=100`);
await page.waitForFunction((count) => document.querySelectorAll("#panel tbody tr").length === count, missed.data.length);
seen.callers = [await page.locator("#panel tbody th a").allTextContents(), missed.data.map(({ ani }) => ani)];
await judge(page, "missed");
await page.locator("#tab-hours").click();
await page.locator("table.heat td.level-5").first().waitFor();
seen.hours = await page.locator("#panel p .note").textContent();
await judge(page, "hours");
await page.locator("#tab-hours").press("ArrowRight");
await page.locator("#panel tbody tr").first().waitFor();
seen.top = [await page.locator("#panel tbody th").allTextContents(), (await get(`/calls/summary?${selection}&groupBy=campaign&top=20`)).data.filter((row) => row.calls).sort((one, other) => Number(one.rest) - Number(other.rest) || other.calls - one.calls).map((row) => (row.rest ? "All others" : row.group.campaign))];
await judge(page, "top");

// Download, and compare with the API.
await page.locator("#tab-calls").click();
await rows(page).first().waitFor();
const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download CSV" }).click()]);
const direct = await fetch(`${base}/calls?${selection}&format=csv`, { headers: { "X-API-Key": key } });
seen.downloaded = readFileSync(await download.path(), "utf-8") === (await direct.text());
seen.file = download.suggestedFilename();

// Open a call by keyboard, play its recording, copy its request, close it with Escape.
const recorded = (await get(`/calls?${selection}&recorded=true&limit=1`)).data[0];
await page.goto(`${base}/console?${selection}&call=${recorded.clientCode}/${recorded.id}&at=${recorded.startTime}`);
await page.locator("dialog audio").waitFor();
seen.duration = await page.locator("dialog audio").evaluate((audio) => new Promise((resolve, reject) => {
  audio.addEventListener("loadedmetadata", () => resolve(audio.duration));
  audio.addEventListener("error", () => reject(audio.error));
  audio.play();
}));
seen.fields = await page.locator("dialog dl").textContent();
seen.recorded = recorded;
await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
await page.getByRole("button", { name: "Copy as curl" }).click();
await page.getByRole("button", { name: "Copied" }).waitFor();
seen.curl = await page.evaluate(() => navigator.clipboard.readText());
await judge(page, "call");
await page.keyboard.press("Escape");
await page.waitForURL((url) => !url.search.includes("call="));
await ready(page);
await rows(page).first().getByRole("button").focus();
await page.keyboard.press("Enter");
await page.locator("dialog dl").waitFor();
await page.keyboard.press("Escape");

// A call arrives while the page is open.
await page.locator("#range").selectOption("last_7_days");
await ready(page);
await page.getByText("Live").waitFor();
const listed = await rows(page).allTextContents();
await page.waitForFunction((before) => [...document.querySelectorAll(".calls tbody tr:not([aria-hidden])")].some((row) => !before.includes(row.textContent)), listed);
seen.arrived = true;

// Thousands of rows: only some are in the page.
await page.locator("#range").selectOption("last_30_days");
await ready(page);
const scroller = page.locator(".scroll.calls");
for (let count = 0; count < 400; ) {
  await scroller.evaluate((element) => { element.scrollTop = element.scrollHeight; });
  await page.waitForFunction((before) => Number.parseInt(document.querySelector("#panel > div > .note").textContent, 10) > before, count);
  count = Number.parseInt(await page.locator("#panel > div > .note").textContent(), 10);
}
seen.rowsInPage = await rows(page).count();

// The upstream fails: a panel reports it; then it heals.
ask("down");
await page.locator("#range").selectOption("last_month");
await page.locator(".panel.problem").first().waitFor();
seen.down = await page.locator(".panel.problem").first().textContent();
await judge(page, "down");
ask("up");
await page.waitForFunction(() => {
  const button = document.querySelector(".panel.problem button");
  if (button) button.click();
  return !button;
}, null, { polling: 1000 });
await page.getByText("No calls in this window.").waitFor();
seen.healed = true;

// Sign out: the key is gone.
await page.getByRole("button", { name: "Sign out" }).click();
await page.locator("#key").waitFor();
seen.stored = await page.evaluate(() => JSON.stringify(sessionStorage));
await page.context().close();

// A key without the scope `personal`, for one client alone: the rest is locked, not broken. In dark, on a telephone.
const narrow = await open({ viewport: { width: 390, height: 800 }, colorScheme: "dark" });
await signIn(narrow, lockedKey);
await ready(narrow);
await judge(narrow, "narrow");
await narrow.locator("#tab-missed").click();
await narrow.locator(".panel.locked").waitFor();
seen.locked = await narrow.locator(".panel.locked h2").textContent();
await narrow.goto(`${base}/console?client=8005550102`);
await narrow.locator(".panel.locked").first().waitFor();
await judge(narrow, "forbidden");
await narrow.context().close();

await browser.close();
console.log(JSON.stringify(seen));
