// The page at /docs: reads openapi.json, shows every operation and schema, and sends requests to this gateway.
// Rules: content is built as DOM nodes, never as HTML text; no requests to other hosts; credentials stay in their input
// fields and in the session storage of the tab.

const MAX_SHOWN = 256 * 1024; // bytes of a body; an export may be larger than the memory of a browser
const BASE = new URL(".", location.href); // with the ingress path, if there is one
const STORED = "callbutton-gateway:"; // the prefix of credentials in the session storage
const METHODS = ["get", "put", "post", "delete", "patch"];
const { document: page } = globalThis;
const wide = matchMedia("(min-width: 56.01rem)"); // as in docs.css
let contract; // the OpenAPI document

function make(tag, attributes = {}, ...children) {
  const node = page.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null));
  return node;
}

// Render the parts of Markdown that the descriptions use: paragraphs, lists, `code` and **bold**.
function prose(text = "") {
  return text.trim().split(/\n{2,}/).filter(Boolean).map((block) => {
    const lines = block.split("\n");
    if (!lines.every((line) => line.startsWith("- "))) return make("p", {}, inline(block));
    return make("ul", {}, lines.map((line) => make("li", {}, inline(line.slice(2)))));
  });
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`")) return make("code", {}, part.slice(1, -1));
    return part.startsWith("**") ? make("strong", {}, part.slice(2, -2)) : part;
  });
}

function resolve(value) {
  if (!value?.$ref) return value ?? {};
  return value.$ref.slice(2).split("/").reduce((found, key) => found[key.replaceAll("~1", "/").replaceAll("~0", "~")], contract);
}

function typeOf(schema = {}) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [make("a", { href: `#schema-${name}`, click: again }, name)];
  }
  const arms = schema.oneOf ?? schema.anyOf;
  if (arms) return arms.flatMap((arm, index) => [index ? " or " : "", ...typeOf(arm)]);
  if (schema.enum) return [schema.enum.map((value) => value ?? "null").join(" | ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.items) return ["list of ", ...typeOf(schema.items)];
  if (schema.additionalProperties?.type) return ["object of ", ...typeOf(schema.additionalProperties)];
  const types = [schema.type ?? "anything"].flat().map((type) => (type !== "null" && schema.format ? schema.format : type));
  const limits = [["minimum", "from"], ["maximum", "to"]].filter(([key]) => Math.abs(schema[key]) < 2 ** 53);
  return [[types.join(" or "), ...limits.map(([key, word]) => `${word} ${schema[key]}`)].join(" ")];
}

function table(headings, rows) {
  const head = make("tr", {}, headings.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell))));
  return make("div", { class: "table", tabindex: 0, role: "region", "aria-label": headings.join(", ") }, make("table", {}, make("thead", {}, head), make("tbody", {}, body)));
}

// Render JSON text with syntax colours.
function highlight(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/g)) {
    nodes.push(text.slice(end, match.index));
    const kind = match[2] ? "name" : match[1] ? "string" : /[a-z]/.test(match[0][0]) ? "word" : "number";
    nodes.push(make("span", { class: kind }, match[1] ?? match[0]), match[2] ?? "");
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

function input(parameter, id) {
  const schema = resolve(parameter.schema);
  const example = parameter.example ?? Object.values(parameter.examples ?? {})[0]?.value ?? schema.examples?.[0];
  const text = [example ?? []].flat().join("\n");
  const given = parameter.required ? text : "";
  const common = { id, "aria-describedby": `${id}-text`, required: parameter.required ?? false };
  const choices = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : undefined);
  if (choices) {
    const empty = schema.default === undefined ? "" : `(${schema.default})`;
    return make("select", common, make("option", { value: "" }, empty), choices.map((value) => make("option", {}, String(value))));
  }
  const placeholder = text || (schema.default === undefined ? "" : String(schema.default));
  if (schema.type === "array") return make("textarea", { ...common, rows: 2, placeholder }, given);
  return make("input", { ...common, placeholder, value: given, autocomplete: "off", spellcheck: "false" });
}

function field(parameter, id, control, type) {
  const required = parameter.required ? make("span", { class: "required" }, "required") : undefined;
  const several = type.type === "array" ? " One per line." : "";
  const text = make("div", { id: `${id}-text` }, prose((parameter.description ?? "") + several));
  const label = make("label", { for: id }, parameter.name);
  return make("div", { class: "field" }, make("div", {}, label, make("span", { class: "type" }, typeOf(type)), required, text), control);
}

// The request of a form: the address, relative to the gateway, and the headers.
function requestOf(path, parameters, controls) {
  const query = new URLSearchParams();
  const headers = {};
  let filled = path;
  parameters.forEach((parameter, index) => {
    const value = controls[index].value;
    if (parameter.in === "path") filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (!value.trim()) return;
    else if (parameter.in === "header") headers[parameter.name] = value;
    else if (resolve(parameter.schema).type === "array") {
      value.split("\n").map((line) => line.trim()).filter(Boolean).forEach((line) => query.append(parameter.name, line));
    } else query.append(parameter.name, value);
  });
  const search = query.toString().replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("*", "%2A");
  return { address: filled.slice(1) + (search ? `?${search}` : ""), headers };
}

// The entered credentials by header. The curl command shows the names of variables instead.
function credentials(shown = false) {
  const headers = {};
  for (const [name, scheme] of Object.entries(contract.components?.securitySchemes ?? {})) {
    const value = page.getElementById(`access-${name}`)?.value.trim();
    if (!value) continue;
    if (scheme.type === "apiKey" && scheme.in === "header") headers[scheme.name] = shown ? "$KEY" : value;
    else headers.Authorization = `Bearer ${shown ? "$TOKEN" : value}`;
  }
  return headers;
}

function command({ address, headers }, method) {
  const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const given = Object.entries(headers).map(([name, value]) => ` -H ${quoted(`${name}: ${value}`)}`);
  const secret = Object.entries(credentials(true)).map(([name, value]) => ` -H "${name}: ${value}"`);
  return `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${quoted(new URL(address, BASE).href)}${[...given, ...secret].join("")}`;
}

// Read a body up to MAX_SHOWN, and whether it is complete.
async function bodyOf(answer) {
  const reader = answer.body?.getReader();
  const decoder = new TextDecoder();
  let [text, bytes] = ["", 0];
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes += value.length;
    text += decoder.decode(value, { stream: true });
    if (bytes > MAX_SHOWN) {
      await reader.cancel();
      return { text, bytes, complete: false };
    }
  }
  return { text: text + decoder.decode(), bytes, complete: true };
}

// A button that copies a text and confirms it.
function copyButton(text) {
  const label = "Copy";
  const click = async (event) => {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed"; // by the browser, for example without TLS
    }
    setTimeout(() => { button.textContent = label; }, 2000);
  };
  return make("button", { type: "button", class: "plain copy", click }, label);
}

// Read a recording, and a player of it.
async function playerOf(answer, type) {
  const sound = await answer.blob();
  const source = URL.createObjectURL(new Blob([sound], { type }));
  return { bytes: sound.size, player: make("audio", { controls: true, src: source, "aria-label": "Recording" }) };
}

async function send(request, method, output, onNext) {
  for (const player of output.querySelectorAll("audio")) URL.revokeObjectURL(player.src);
  const began = performance.now();
  output.replaceChildren(make("p", { class: "note" }, "Sending …"));
  let answer, body;
  try {
    answer = await fetch(new URL(request.address, BASE), { method: method.toUpperCase(), headers: { ...request.headers, ...credentials() }, cache: "no-store" });
    const type = answer.headers.get("content-type") ?? "";
    body = answer.ok && type.startsWith("audio/") ? { text: "", complete: true, ...(await playerOf(answer, type)) } : await bodyOf(answer);
  } catch (error) {
    output.replaceChildren(make("p", { class: "bad" }, answer ? "The response is incomplete." : "The gateway cannot be reached.", ` (${error.message})`));
    return;
  }
  const milliseconds = Math.round(performance.now() - began);
  const type = answer.headers.get("content-type") ?? "";
  let json;
  if (/[/+]json/.test(type) && body.complete) {
    try { json = JSON.parse(body.text); } catch { json = undefined; }
  }
  const status = make("span", { class: `status ${answer.ok ? "good" : "bad"}` }, `${answer.status} ${answer.statusText}`.trim());
  const facts = ` ${milliseconds} ms · ${body.bytes.toLocaleString("en")} bytes · ${type}`;
  const cursor = json?.page?.nextCursor;
  output.replaceChildren(
    make("p", {}, status, make("span", { class: "note" }, facts)),
    make("details", {}, make("summary", {}, "Headers"), make("pre", { tabindex: 0 }, [...answer.headers].map(([name, value]) => `${name}: ${value}\n`))),
    body.player ?? make("pre", { tabindex: 0, class: "body", "aria-label": "Body" }, json === undefined ? body.text : highlight(JSON.stringify(json, null, 2))),
    body.complete ? "" : make("p", { class: "note" }, "Only the beginning is shown. Use the curl command to get all of it."),
    cursor && onNext ? make("button", { type: "button", class: "plain", click: () => onNext(cursor) }, "Next page") : "",
  );
}

function operation(path, method, item, described) {
  const parameters = [...(item.parameters ?? []), ...(described.parameters ?? [])].map(resolve);
  const name = described.operationId;
  const controls = parameters.map((parameter, index) => input(parameter, `${name}-${index}`));
  const output = make("div", { class: "answer", "aria-live": "polite" });
  const shown = make("code", {});
  const refresh = () => { shown.textContent = command(requestOf(path, parameters, controls), method); };
  const cursor = controls[parameters.findIndex((parameter) => parameter.name === "cursor")];
  const button = make("button", { type: "submit" }, "Send");
  const onNext = cursor && ((value) => {
    cursor.value = value;
    refresh();
    form.requestSubmit();
    button.focus();
  });
  const submit = async (event) => {
    event.preventDefault();
    refresh();
    button.disabled = true;
    await send(requestOf(path, parameters, controls), method, output, onNext);
    button.disabled = false;
  };
  const fields = parameters.map((parameter, index) => field(parameter, `${name}-${index}`, controls[index], resolve(parameter.schema)));
  const form = make("form", { submit, input: refresh, "aria-label": described.summary }, fields, make("div", { class: "actions" }, button, shown, copyButton(() => shown.textContent)), output);
  const responses = Object.entries(described.responses ?? {}).map(([status, response]) => {
    const { description, content = {} } = resolve(response);
    const types = Object.entries(content).map(([type, { schema }], index) => [index ? make("br") : "", make("code", {}, type), " ", ...(schema ? typeOf(schema) : [])]);
    return [make("code", {}, status), inline(description ?? ""), types.flat()];
  });
  page.addEventListener("credentials", refresh);
  refresh();
  return make(
    "details", { class: "card", id: name },
    make("summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("span", { class: "path" }, path), make("span", { class: "note" }, described.summary)),
    make("div", { class: "inside" }, prose(described.description), form, make("h3", {}, "Responses"), table(["status", "description", "body"], responses)),
  );
}

function schema(name, described) {
  const required = new Set(described.required);
  const partly = required.size < Object.keys(described.properties ?? {}).length; // the parameter `fields` may leave out the others
  const rows = Object.entries(described.properties ?? {}).map(([key, value]) => [
    [make("code", {}, key), partly && required.has(key) ? make("span", { class: "note" }, " always") : ""], typeOf(value), inline(value.description ?? resolve(value).description ?? ""),
  ]);
  const inside = rows.length ? table(["field", "type", "description"], rows) : make("p", {}, typeOf(described));
  return make("details", { class: "card", id: `schema-${name}` }, make("summary", {}, make("span", { class: "path" }, name)), make("div", { class: "inside" }, prose(described.description), inside));
}

// The session storage belongs to the tab. A browser may forbid it.
function stored(id) {
  try { return sessionStorage.getItem(STORED + id) ?? ""; } catch { return ""; }
}

function store(id, value) {
  try { sessionStorage.setItem(STORED + id, value); } catch { /* the credential lasts as long as the page */ }
}

function access() {
  const schemes = Object.entries(contract.components?.securitySchemes ?? {});
  if (!schemes.length) return undefined;
  const changed = ({ currentTarget: { id, value } }) => {
    store(id, value);
    page.dispatchEvent(new Event("credentials"));
  };
  const fields = schemes.map(([name, scheme]) => {
    const id = `access-${name}`;
    const control = make("input", { id, type: "password", autocomplete: "off", "aria-describedby": `${id}-text`, input: changed });
    control.value = stored(id);
    const label = scheme.type === "apiKey" ? scheme.name : `Authorization: ${scheme.scheme ?? "bearer"}`;
    return field({ name: label, description: scheme.description }, id, control, { type: "string" });
  });
  const note = make("p", { class: "note" }, "Sent with every request from this page. Kept until this tab is closed.");
  return [make("h2", {}, "Authentication"), make("form", { class: "card access", submit: (event) => event.preventDefault() }, fields, note)];
}

// Open and show the target of the address, which a link or an edit has changed.
function reveal() {
  const target = page.getElementById(location.hash.slice(1));
  if (target?.tagName !== "DETAILS") return;
  target.open = true;
  if (!wide.matches) page.querySelector("nav details").open = false;
  target.scrollIntoView();
  target.querySelector("summary").focus({ preventScroll: true });
}

// A link to the present address changes nothing, so the browser sends no event.
function again(event) {
  if (event.currentTarget.hash === location.hash) reveal();
}

function link(id, text) {
  return make("li", {}, make("a", { href: `#${id}`, click: again }, text));
}

function show() {
  const groups = new Map((contract.tags ?? []).map((tag) => [tag.name, { ...tag, found: [] }]));
  for (const [path, item] of Object.entries(contract.paths)) {
    for (const method of METHODS.filter((one) => item[one])) {
      const tag = item[method].tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, { name: tag, found: [] });
      groups.get(tag).found.push({ path, method, item, described: item[method] });
    }
  }
  const used = [...groups.values()].filter((group) => group.found.length);
  const schemas = Object.entries(contract.components?.schemas ?? {});
  const { title, version, description } = contract.info;
  page.title = title;
  const menu = make(
    "details", {},
    make("summary", {}, "Operations and schemas"),
    ...used.flatMap((group) => [make("h2", {}, group.name), make("ul", {}, group.found.map(({ described }) => link(described.operationId, described.summary)))]),
    make("h2", {}, "schemas"),
    make("ul", {}, schemas.map(([name]) => link(`schema-${name}`, name))),
  );
  const fold = () => { menu.open = wide.matches; };
  page.querySelector("nav").replaceChildren(
    make("p", { class: "title" }, title),
    make("p", { class: "note" }, `${version} · `, make("a", { href: "openapi.yaml", class: "inline" }, "openapi.yaml")),
    menu,
  );
  wide.addEventListener("change", fold);
  fold();
  page.querySelector("main").replaceChildren(
    make("h1", {}, title),
    ...prose(description),
    ...(access() ?? []),
    ...used.flatMap((group) => [
      make("h2", {}, group.name[0].toUpperCase() + group.name.slice(1)),
      make("div", { class: "note" }, prose(group.description)),
      ...group.found.map(({ path, method, item, described }) => operation(path, method, item, described)),
    ]),
    make("h2", {}, "Schemas"),
    ...schemas.map(([name, described]) => schema(name, described)),
  );
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
  else page.querySelector("main details.card").open = true;
}

try {
  const answer = await fetch(new URL("openapi.json", BASE));
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
  contract = await answer.json();
  show();
} catch (error) {
  page.querySelector("main").replaceChildren(make("p", { class: "bad", role: "alert" }, `The API reference cannot be shown: ${error.message}`));
}
