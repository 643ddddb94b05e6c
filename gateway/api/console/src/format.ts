// Numbers, durations and times for people, in the locale of the browser.

const NUMBER = new Intl.NumberFormat();
const PERCENT = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const formats = new Map<string, Intl.DateTimeFormat>();

function format(tz: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = tz + JSON.stringify(options);
  let found = formats.get(key);
  if (!found) {
    found = new Intl.DateTimeFormat(undefined, { timeZone: tz, ...options });
    formats.set(key, found);
  }
  return found;
}

/** A number with separators of the locale; a dash if it is unknown. */
export function number(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : NUMBER.format(value);
}

/** A part of 1 in per cent; a dash if it is unknown. */
export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : PERCENT.format(value);
}

/** Seconds as `1:05` or `2:03:09`; a dash if they are unknown. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (!parts[0]) parts.shift();
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

/** Date and time to the second. */
export function dateTime(instant: string, tz: string): string {
  return format(tz, { dateStyle: "medium", timeStyle: "medium" }).format(new Date(instant));
}

/** Day and time to the minute, for lists. */
export function shortTime(instant: string, tz: string): string {
  const options = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" } as const;
  return format(tz, options).format(new Date(instant));
}

/** The time alone. */
export function time(instant: string, tz: string): string {
  return format(tz, { timeStyle: "medium" }).format(new Date(instant));
}

/** The beginning of a bucket of the chart. */
export function bucket(instant: string, interval: string, tz: string): string {
  const options: Intl.DateTimeFormatOptions =
    interval === "hour"
      ? { weekday: "short", day: "numeric", hour: "numeric" }
      : interval === "month"
        ? { month: "long", year: "numeric" }
        : { weekday: "short", month: "short", day: "numeric" };
  return format(tz, options).format(new Date(instant));
}

// 1 January 2024 was a Monday.
/** The name of a day of the week, 1 (Monday) to 7. */
export function weekday(day: number): string {
  return format("UTC", { weekday: "short" }).format(new Date(Date.UTC(2024, 0, day)));
}

/** The name of an hour of the day, 0 to 23. */
export function hour(hours: number): string {
  return format("UTC", { hour: "numeric" }).format(new Date(Date.UTC(2024, 0, 1, hours)));
}

/** A value of the API for people: `no_answer` is "no answer". */
export function words(value: string): string {
  return value.replaceAll("_", " ");
}

/** The name of a field for people: `talkTimeSeconds` is "Talk time". */
export function label(field: string): string {
  const known: Record<string, string> = {
    ani: "Caller",
    did: "Tracking number",
    startTime: "Time",
    talkTimeSeconds: "Talk time",
    durationSeconds: "Duration",
    clientCode: "Client",
    dtmf: "Keys pressed",
    phoneType: "Phone type",
    id: "Call id",
    hourOfDay: "Hour",
    dayOfWeek: "Weekday",
  };
  const spaced = field.replace(/([A-Z])/g, " $1").toLowerCase();
  return known[field] ?? spaced.charAt(0).toUpperCase() + spaced.slice(1);
}
