import { useEffect, useState } from "preact/hooks";
import { PRESETS, type Preset, type View } from "./address";
import { dateTime } from "./format";

const DAY = 86_400_000; // milliseconds
const DATE = /^\d{4}-\d{2}-\d{2}$/;

function shift(date: string, days: number): string {
  return new Date(Date.parse(date) + days * DAY).toISOString().slice(0, 10);
}

interface Props {
  view: View;
  change: (part: Partial<View>) => void;
}

/** Choose a preset, or own dates, and the time zone. */
export function WindowPicker({ view, change }: Props) {
  const [own, setOwn] = useState(view.range === null);
  const [first, setFirst] = useState("");
  const [last, setLast] = useState("");
  const [error, setError] = useState("");
  useEffect(() => {
    setOwn(view.range === null);
    setFirst(DATE.test(view.start) ? view.start : "");
    setLast(DATE.test(view.end) ? shift(view.end, -1) : "");
  }, [view.range, view.start, view.end]);
  const choose = (value: string) => {
    if (value === "own") setOwn(true);
    else change({ range: value as Preset, start: "", end: "" });
  };
  const apply = (event: Event) => {
    event.preventDefault();
    if (!first || !last) return setError("Choose both dates.");
    if (first > last) return setError("The first day is after the last.");
    setError("");
    change({ range: null, start: first, end: shift(last, 1) });
  };
  const zones = [...new Set([view.tz, "UTC", "America/Chicago", ...Intl.supportedValuesOf("timeZone")])];
  const zoomed = view.range === null && !DATE.test(view.start);
  return (
    <form class="window" onSubmit={apply}>
      <label class="hidden" for="range">
        Window
      </label>
      <select
        id="range"
        value={own ? "own" : (view.range ?? "own")}
        onChange={(event) => choose(event.currentTarget.value)}
      >
        {Object.entries(PRESETS).map(([name, text]) => (
          <option key={name} value={name}>
            {text}
          </option>
        ))}
        <option value="own">
          {zoomed ? `${dateTime(view.start, view.tz)} – ${dateTime(view.end, view.tz)}` : "Own dates …"}
        </option>
      </select>
      {own && (
        <>
          <label class="hidden" for="first">
            First day
          </label>
          <input id="first" type="date" value={first} onInput={(event) => setFirst(event.currentTarget.value)} />
          <label class="hidden" for="last">
            Last day
          </label>
          <input id="last" type="date" value={last} onInput={(event) => setLast(event.currentTarget.value)} />
          <button type="submit">Show</button>
          {error && (
            <span class="bad" role="alert">
              {error}
            </span>
          )}
        </>
      )}
      <label class="hidden" for="zone">
        Time zone
      </label>
      <select id="zone" value={view.tz} onChange={(event) => change({ tz: event.currentTarget.value })}>
        {zones.map((zone) => (
          <option key={zone}>{zone}</option>
        ))}
      </select>
    </form>
  );
}
