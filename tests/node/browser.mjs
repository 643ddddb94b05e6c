// Looks at the pages for people in a real browser and prints what it saw, as JSON: browser.mjs CHROMIUM URL KEY [PICTURES]
import { launch } from "./launch.mjs";

const [executablePath, base, key, pictures] = process.argv.slice(2);
const browser = await launch(executablePath);
const seen = { requests: [], complaints: [], backgrounds: {} };

async function open(path, colorScheme, viewport = { width: 1280, height: 900 }) {
  const page = await browser.newPage({ colorScheme, viewport });
  page.on("request", (request) => seen.requests.push(new URL(request.url()).origin));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.complaints.push(message.text()));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(base + path);
  return page;
}

async function shot(page, name) {
  if (pictures) await page.screenshot({ path: `${pictures}/${name}.png` });
}

// Press Tab until this has the focus.
async function tabTo(page, selector) {
  for (let presses = 0; presses < 300; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((wanted) => document.activeElement?.matches(wanted), selector)) return;
  }
  throw new Error(`Tab does not lead to ${selector}`);
}

for (const scheme of ["light", "dark"]) {
  const page = await open("/docs", scheme);
  await page.locator("details.card").first().waitFor();
  seen.backgrounds[scheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await shot(page, `docs-${scheme}`);
  await page.close();
}

const narrow = await open("/docs", "light", { width: 400, height: 800 });
await narrow.locator("details.card").first().waitFor();
seen.overflow = await narrow.evaluate(() => document.documentElement.scrollWidth - innerWidth);
seen.navigation = await narrow.evaluate(() => document.querySelector("nav").getBoundingClientRect().height);
await shot(narrow, "docs-narrow");
await narrow.locator("nav summary").click();
await narrow.locator("nav a[href='#getClientCall']").click();
await narrow.locator("#getClientCall[open]").waitFor();
seen.menuCloses = await narrow.locator("nav details:not([open])").count() === 1;
await narrow.close();

// By keyboard alone: give the key, open an operation, send its request, turn the page.
const page = await open("/docs", "dark");
await page.locator("details.card").first().waitFor();
seen.operations = await page.locator("details.card .path").allTextContents();
seen.unlabelled = await page.locator("input, select, textarea").evaluateAll((all) => all.filter((one) => !one.labels?.length).map((one) => one.outerHTML));
await tabTo(page, "a.skip");
await page.keyboard.press("Enter");
await tabTo(page, "#access-key");
await page.keyboard.type(key);
await tabTo(page, "#listCalls > summary");
await page.keyboard.press("Enter");
await tabTo(page, "#listCalls textarea");
await page.keyboard.press("Control+A");
await page.keyboard.type("8005550100");
await tabTo(page, "#listCalls button[type=submit]");
await page.keyboard.press("Enter");
const answer = page.locator("#listCalls .answer");
await answer.locator(".status").waitFor();
seen.command = await page.locator("#listCalls .actions code").textContent();
seen.first = { status: await answer.locator(".status").textContent(), body: JSON.parse(await answer.locator(".body").textContent()) };
await answer.scrollIntoViewIfNeeded();
await shot(page, "answer");
await tabTo(page, "#listCalls .answer button");
await page.keyboard.press("Enter");
await page.waitForFunction((before) => {
  const shown = document.querySelector("#listCalls .answer .body")?.textContent;
  return shown && JSON.parse(shown).data[0].id !== before;
}, seen.first.body.data[0].id);
seen.second = JSON.parse(await answer.locator(".body").textContent());

// Copy the command, edit the address, play a recording, load the page again.
await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
await page.locator("#listCalls button.copy").click();
await page.getByText("Copied").waitFor();
seen.copied = await page.evaluate(() => navigator.clipboard.readText());
seen.shown = await page.locator("#listCalls .actions code").textContent();
await page.evaluate(() => { location.hash = "#getRecording"; });
await page.locator("#getRecording[open]").waitFor();
const recorded = seen.first.body.data.find((call) => call.recordingUrl);
await page.locator("#getRecording input").first().fill(recorded.recordingUrl.split("/").pop());
await page.locator("#getRecording button[type=submit]").click();
seen.duration = await page.locator("#getRecording audio").evaluate((audio) => new Promise((resolve, reject) => {
  if (audio.readyState > 0) resolve(audio.duration);
  audio.addEventListener("loadedmetadata", () => resolve(audio.duration));
  audio.addEventListener("error", () => reject(audio.error));
}));
await shot(page, "recording");
await page.reload();
await page.locator("#getRecording[open]").waitFor();
seen.keptKey = await page.locator("#access-key").inputValue();
await page.close();

const problem = await open("/problems/upstream-timeout", "light");
seen.problem = await problem.locator("h1").textContent();
await shot(problem, "problem");

await browser.close();
console.log(JSON.stringify(seen));
