// Signs in to the console with an OIDC issuer, in a real browser, and prints its findings as JSON:
// console-sign-in.mjs CHROMIUM URL
import { launch } from "./launch.mjs";

const [executablePath, base] = process.argv.slice(2);
const browser = await launch(executablePath);
const page = await browser.newPage();
page.setDefaultTimeout(90_000); // milliseconds; of a slow machine
const complaints = [];
page.on("console", (message) => message.text().includes("Content Security Policy") && complaints.push(message.text()));
await page.goto(`${base}/console?client=8005550100&range=last_7_days&tab=hours`);
await page.getByRole("button", { name: "Sign in with your organisation" }).click();
await page.locator("table.heat").waitFor();
await page.locator(".figures dd").first().waitFor();
const address = page.url();
const stored = await page.evaluate(() => Object.keys(sessionStorage));

// An answer of the issuer that this tab did not ask for is refused.
await page.getByRole("button", { name: "Sign out" }).click();
await page.evaluate(() => sessionStorage.setItem("callbutton-gateway:sign-in", JSON.stringify({ state: "mine", verifier: "v", view: "" })));
await page.goto(`${base}/console?code=stolen&state=other`);
await page.getByRole("alert").waitFor();
const refused = await page.getByRole("alert").textContent();
await browser.close();
console.log(JSON.stringify({ address, stored, complaints, refused }));
