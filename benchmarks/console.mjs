// Opens the console several times and prints, as JSON, after how many milliseconds it was painted:
// console.mjs CHROMIUM URL KEY TIMES [PICTURES]
import { launch } from "../tests/node/launch.mjs";

const [executablePath, base, key, times, pictures] = process.argv.slice(2);
const browser = await launch(executablePath);

async function open(viewport, colorScheme = "light") {
  const context = await browser.newContext({ viewport, colorScheme });
  await context.addInitScript((value) => sessionStorage.setItem("callbutton-gateway:access-key", value), key);
  const page = await context.newPage();
  await page.goto(`${base}/console?client=8005550100&range=last_30_days&tz=America/Chicago`);
  await page.waitForFunction(() => ["figures", "chart", "rows"].every((part) => performance.getEntriesByName(`console-${part}`).length));
  return page;
}

const painted = [];
for (let time = 0; time < Number(times); time += 1) {
  const page = await open({ width: 1280, height: 1600 });
  painted.push(await page.evaluate(() => {
    const marks = ["figures", "chart", "rows"].map((part) => performance.getEntriesByName(`console-${part}`)[0].startTime);
    return { milliseconds: Math.max(...marks), rows: document.querySelectorAll(".calls tbody tr:not([aria-hidden])").length };
  }));
  await page.context().close();
}
if (pictures) {
  const wide = await open({ width: 1280, height: 900 });
  await wide.screenshot({ path: `${pictures}/console.png` });
  await wide.locator("#tab-hours").click();
  await wide.locator("table.heat td.level-5").first().waitFor();
  await wide.evaluate(() => scrollTo(0, document.body.scrollHeight));
  await wide.screenshot({ path: `${pictures}/console-hours.png` });
}
await browser.close();
console.log(JSON.stringify(painted));
