import { useEffect, useRef, useState } from "preact/hooks";
import type { View } from "./address";
import { ApiError, addressOf, api, BASE, type Call, curl, unwrap } from "./api";
import { dateTime, duration, label, words } from "./format";
import { ProblemPanel } from "./ProblemPanel";
import { useQuery } from "./query";

const CERTAINTY = {
  exact: "The time is exact.",
  inferred: "The clocks went back an hour that night. The order of the calls tells which of the two hours this is.",
  assumed:
    "The clocks changed that night, and the server does not say which of two readings this is: the time may be an hour off.",
};

/** Every field of a call, its recording, and the request that returns it. */
export function CallDetails({ view, onClose }: { view: View; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [code = "", id = ""] = view.call.split(/\/(.*)/s);
  const load = (window: { start?: string; end?: string }, signal: AbortSignal) => {
    const query = { include: "status", ...window } as const;
    const path = { code, call_id: id };
    return unwrap(api.GET("/clients/{code}/calls/{call_id}", { params: { path, query }, signal }));
  };
  const query = useQuery(view.call, async (signal) => {
    if (!view.at) return load({}, signal);
    try {
      return await load(secondOf(view.at), signal);
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return load({}, signal); // its time was corrected
      throw error;
    }
  });
  useEffect(() => dialog.current?.showModal(), []);
  const call = query.data?.data;
  const request = addressOf(`/clients/${encodeURIComponent(code)}/calls/${encodeURIComponent(id)}`, {
    include: "status",
  });
  return (
    <dialog ref={dialog} onClose={onClose} aria-labelledby="call-title">
      <form method="dialog">
        <h2 id="call-title">Call {id}</h2>
        <button type="submit" class="plain">
          Close
        </button>
      </form>
      {query.problem && <ProblemPanel error={query.problem} onRetry={query.reload} />}
      {query.loading && !call && <p class="note">Loading …</p>}
      {call && <Details call={call} tz={view.tz} />}
      <p class="actions">
        <Copy text={curl(request)} name="Copy as curl" />
        {call && <Copy text={JSON.stringify(call, null, 2)} name="Copy as JSON" />}
        <Copy text={location.href} name="Copy link" />
      </p>
    </dialog>
  );
}

/** The second that begins at an instant. */
function secondOf(instant: string): { start: string; end: string } {
  return { start: instant, end: new Date(Date.parse(instant) + 1000).toISOString() };
}

function Details({ call, tz }: { call: Call; tz: string }) {
  const { startTime, startTimeCertainty, recordingUrl, address, status, extra, ...fields } = call;
  const rows: [string, string][] = [
    ...Object.entries(fields).map(([name, value]): [string, string] => [label(name), shown(name, value)]),
    ...Object.entries({ ...address, ...status }).map(([name, value]): [string, string] => [
      label(name),
      shown(name, value),
    ]),
    ...Object.entries(extra).map(([name, value]): [string, string] => [name, value]),
  ];
  return (
    <>
      <p>
        <strong>{dateTime(startTime, tz)}</strong>{" "}
        <span class={startTimeCertainty === "exact" ? "note" : "bad"}>{CERTAINTY[startTimeCertainty]}</span>
      </p>
      {recordingUrl ? (
        <audio controls preload="none" src={new URL(recordingUrl.replace(/^\//, ""), BASE).href}>
          <track kind="captions" />
        </audio>
      ) : (
        <p class="note">No recording, or none that this key may play.</p>
      )}
      <dl class="fields">
        {rows
          .filter(([, value]) => value)
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
      </dl>
    </>
  );
}

function shown(name: string, value: unknown): string {
  if (value === null || value === undefined) return "";
  if (name.endsWith("Seconds")) return duration(value as number);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return name === "result" || name === "phoneType" || name === "sales" ? words(String(value)) : String(value);
}

function Copy({ text, name }: { text: string; name: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
  };
  return (
    <button type="button" class="plain small" onClick={copy}>
      {done ? "Copied" : name}
    </button>
  );
}
