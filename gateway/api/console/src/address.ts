// The view as the address bar has it: clients, window, filters, tab and the open call. Pure.

import type { paths } from "./contract";

export type Selection = NonNullable<paths["/calls"]["get"]["parameters"]["query"]>;

export const PRESETS = {
  today: "Today",
  yesterday: "Yesterday",
  last_7_days: "Last 7 days",
  last_30_days: "Last 30 days",
  this_month: "This month",
  last_month: "Last month",
  this_year: "This year",
} as const;
export type Preset = keyof typeof PRESETS;

export const TABS = { calls: "Calls", missed: "Missed callers", hours: "Busy hours", top: "Top" } as const;
export type Tab = keyof typeof TABS;

export interface View {
  clients: string[]; // client codes, or "*" alone: every client that the key may see
  range: Preset | null; // a preset, or null with `start` and `end`
  start: string; // a date or an RFC 3339 instant, inclusive
  end: string; // the same, exclusive; empty: now
  tz: string; // IANA name
  tab: Tab;
  filters: Record<string, string>; // query parameters of the list
  columns: string[]; // fields of the list of calls
  call: string; // "code/id" of the open call, or empty
  at: string; // the start of the open call, where it is looked for first
}

export const COLUMNS = ["startTime", "ani", "result", "talkTimeSeconds", "clientCode", "campaign", "target"];

const OWN = new Set(["client", "range", "start", "end", "tz", "tab", "columns", "call", "at", "code", "state"]);

/** The view of a query string. Parameters that the console does not know are filters. */
export function parseView(query: string, browserZone: string): View {
  const given = new URLSearchParams(query);
  const start = given.get("start") ?? "";
  const range = given.get("range") ?? "";
  const tab = given.get("tab") ?? "";
  const clients = given.getAll("client").filter(Boolean);
  return {
    clients: clients.length ? clients : ["*"],
    range: start ? null : range in PRESETS ? (range as Preset) : "last_30_days",
    start,
    end: start ? (given.get("end") ?? "") : "",
    tz: given.get("tz") || browserZone,
    tab: tab in TABS ? (tab as Tab) : "calls",
    filters: Object.fromEntries([...given].filter(([name, value]) => !OWN.has(name) && value)),
    columns: given.get("columns")?.split(",").filter(Boolean) ?? COLUMNS,
    call: given.get("call") ?? "",
    at: given.get("at") ?? "",
  };
}

/** The query string of a view, with the defaults left out except the zone, so that colleagues see the same. */
export function renderView(view: View): string {
  const query = new URLSearchParams();
  for (const code of view.clients) if (code !== "*") query.append("client", code);
  for (const [name, value] of windowOf(view)) query.append(name, value);
  for (const [name, value] of Object.entries(view.filters)) query.append(name, value);
  if (view.tab !== "calls") query.append("tab", view.tab);
  if (view.columns.join() !== COLUMNS.join()) query.append("columns", view.columns.join());
  if (view.call) {
    query.append("call", view.call);
    query.append("at", view.at);
  }
  return `?${query}`;
}

/** The parameters of the window of a view. */
export function windowOf(view: View): [string, string][] {
  const window: [string, string][] = view.range
    ? [["range", view.range]]
    : [["start", view.start], ...(view.end ? ([["end", view.end]] as [string, string][]) : [])];
  return [...window, ["tz", view.tz]];
}

/** The parameters that select the calls of a view. Filters come from the address: the API judges them. */
export function selection(view: View): Selection {
  return { client: view.clients, ...Object.fromEntries(windowOf(view)), ...view.filters } as Selection;
}

const DAY = 86_400_000; // milliseconds

/** The interval of the chart: at most about 100 bars. */
export function intervalOf(view: View, now: number): "hour" | "day" | "week" | "month" {
  if (view.range)
    return view.range === "today" || view.range === "yesterday" ? "hour" : view.range === "this_year" ? "week" : "day";
  const days = (instant(view.end, now) - instant(view.start, now)) / DAY;
  return days <= 4 ? "hour" : days <= 95 ? "day" : days <= 700 ? "week" : "month";
}

/** Whether the window of a view ends now, so that new calls can appear in it. */
export function isLive(view: View, now: number): boolean {
  if (view.range) return view.range !== "yesterday" && view.range !== "last_month";
  return instant(view.end, now) >= now;
}

function instant(text: string, now: number): number {
  const found = Date.parse(text);
  return text && !Number.isNaN(found) ? found : now;
}
