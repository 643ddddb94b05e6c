// Follows a stream of the change feed in a real browser, and prints its events: stream.mjs CHROMIUM URL KEY PATH
// Prints `later` when it has what there is to tell, and goes on after a line on standard input.
import { createInterface } from "node:readline";
import { launch } from "./launch.mjs";

const [executablePath, base, key, path] = process.argv.slice(2);
const browser = await launch(executablePath);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let last = "";

async function later() {
  console.log("later");
  await lines.next();
}

const page = await browser.newPage();
await page.exposeFunction("report", (event) => {
  last = event.id || last;
  console.log(JSON.stringify({ event: event.event, data: JSON.parse(event.data) }));
});
await page.exposeFunction("later", later);

// Read events until as many are `up-to-date`; ask for a change after each but the last one.
async function follow(times) {
  await page.goto(`${base}/docs`);
  await page.evaluate(async ([path, key, last, times]) => {
    const headers = { Accept: "text/event-stream", "X-API-Key": key, ...(last && { "Last-Event-ID": last }) };
    const leaving = new AbortController();
    const response = await fetch(path, { headers, signal: leaving.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (times > 0) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the stream ended");
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
        if (!fields.data || times === 0) continue;
        await report({ id: fields.id ?? "", event: fields.event, data: fields.data });
        if (fields.event === "up-to-date" && (times -= 1) > 0) await later();
      }
    }
    leaving.abort();
  }, [path, key, last, times]);
}

await follow(2);
await later();
await follow(1);
await browser.close();
process.exit(0);
