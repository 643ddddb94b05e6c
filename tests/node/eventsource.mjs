// Follows the change feed in a real browser with EventSource, by a link: eventsource.mjs CHROMIUM PAGE GATEWAY PATH KEY
// Prints a line when the copy is up to date for the first time, and one when it is again after the stream has ended.
import { launch } from "./launch.mjs";

const [executablePath, address, gateway, path, key] = process.argv.slice(2);
const browser = await launch(executablePath);
const page = await browser.newPage();
await page.exposeFunction("say", (text) => console.log(text));
await page.goto(address);
await page.evaluate(async ({ gateway, path, key }) => {
  const answer = await fetch(`${gateway}${path}?link=true`, { headers: { "X-API-Key": key } });
  const source = new EventSource(new URL((await answer.json()).url, gateway));
  let opened = 0;
  const replaced = [];
  source.onopen = () => { opened += 1; };
  source.addEventListener("replace", (event) => replaced.push(...JSON.parse(event.data).calls));
  source.addEventListener("up-to-date", (event) => {
    window.say(JSON.stringify({ opened, replaced: replaced.length, calls: JSON.parse(event.data).page.calls }));
    replaced.length = 0;
  });
  source.onerror = () => source.readyState === EventSource.CLOSED && window.say(JSON.stringify({ closed: true }));
}, { gateway, path, key });
await new Promise((resolve) => process.stdin.on("end", resolve).resume());
await browser.close();
