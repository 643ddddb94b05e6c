// The list of calls, newest first. Only the rows in sight are in the page; further ones are loaded on scrolling.

import { useEffect, useRef, useState } from "preact/hooks";
import { COLUMNS, type Selection, type View } from "./address";
import { ApiError, api, type Call, unwrap } from "./api";
import type { Changes } from "./feed";
import { duration, label, shortTime, words } from "./format";
import { ProblemPanel } from "./ProblemPanel";
import { usePainted } from "./query";

const ROW = 40; // pixels, as in style.css
const PAGE = 100; // calls a request
const SPARE = 40; // rows kept above and below those in sight
const CHOICES = [
  ...COLUMNS,
  "did",
  "durationSeconds",
  "phoneType",
  "otherData",
  "dtmf",
  "indexNumber",
  "startTimeCertainty",
  "id",
];

interface Listed {
  calls: Call[];
  cursor: string | null;
}

const identity = (call: { clientCode: string; id: string }) => `${call.clientCode}/${call.id}`;

/**
 * The list after a change: the first page as it is now, then the further calls as they were, edited and removed as the
 * feed says. If the first page does not reach the calls that were there, the list begins again with it.
 */
export function merge(before: Listed, first: Listed, changes: Changes): Listed {
  const last = first.calls.at(-1);
  const edge = last ? before.calls.findIndex((call) => identity(call) === identity(last)) : -1;
  if (edge < 0 || first.cursor === null) return first;
  const removed = new Set(changes.removes.map(identity));
  const edited = new Map(changes.upserts.map((call) => [identity(call), call]));
  const present = new Set(first.calls.map(identity));
  const rest = before.calls
    .slice(edge + 1)
    .filter((call) => !removed.has(identity(call)) && !present.has(identity(call)))
    .map((call) => ({ ...call, ...edited.get(identity(call)) }));
  return { calls: [...first.calls, ...rest], cursor: before.calls.length > edge + 1 ? before.cursor : first.cursor };
}

interface Props {
  view: View;
  change: (part: Partial<View>) => void;
  selected: Selection;
  changes: Changes | null;
}

export function Calls({ view, change, selected, changes }: Props) {
  const [listed, setListed] = useState<Listed | null>(null);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [top, setTop] = useState(0); // the first row in sight
  const [rows, setRows] = useState(20); // rows in sight
  const loading = useRef<AbortController | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const key = JSON.stringify(selected);

  const load = async (cursor: string | null, use: (page: Listed) => void) => {
    loading.current?.abort();
    const controller = new AbortController();
    loading.current = controller;
    try {
      const query = cursor ? { ...selected, limit: PAGE, cursor } : { ...selected, limit: PAGE };
      const page = await unwrap(api.GET("/calls", { params: { query }, signal: controller.signal }));
      setProblem(null);
      use({ calls: page.data, cursor: page.page.nextCursor });
    } catch (error) {
      if (error instanceof ApiError) setProblem(error);
    } finally {
      if (loading.current === controller) loading.current = null;
    }
  };
  // `key` stands for `selected`
  useEffect(() => {
    setListed(null);
    if (box.current) box.current.scrollTop = 0;
    load(null, setListed);
    return () => loading.current?.abort();
  }, [key]);
  // a change is applied once
  useEffect(() => {
    if (changes) load(null, (first) => setListed((before) => (before ? merge(before, first, changes) : first)));
  }, [changes]);
  const complete = listed !== null && listed.cursor === null;
  const count = listed?.calls.length ?? 0;
  // loads the next page when the end comes into sight
  useEffect(() => {
    if (!listed?.cursor || loading.current || top + rows + 2 * SPARE < count) return;
    load(listed.cursor, (next) =>
      setListed((before) => before && { calls: [...before.calls, ...next.calls], cursor: next.cursor }),
    );
  }, [listed, top, rows]);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const resized = new ResizeObserver(() => setRows(Math.ceil(element.clientHeight / ROW)));
    resized.observe(element);
    return () => resized.disconnect();
  }, []);
  usePainted("rows", listed !== null);

  const from = Math.max(0, Math.min(top, count) - SPARE);
  const visible = listed?.calls.slice(from, top + rows + SPARE) ?? [];
  return (
    <div aria-busy={listed === null && problem === null}>
      <details class="menu columns">
        <summary>Columns</summary>
        <ul class="sheet choices">
          {CHOICES.map((name) => (
            <li key={name}>
              <label>
                <input
                  type="checkbox"
                  checked={view.columns.includes(name)}
                  disabled={name === "startTime"}
                  onChange={() =>
                    change({
                      columns: view.columns.includes(name)
                        ? view.columns.filter((other) => other !== name)
                        : CHOICES.filter((other) => other === name || view.columns.includes(other)),
                    })
                  }
                />{" "}
                {label(name)}
              </label>
            </li>
          ))}
        </ul>
      </details>
      {problem && <ProblemPanel error={problem} onRetry={() => load(null, setListed)} />}
      <section
        class="scroll calls"
        ref={box}
        tabIndex={0}
        aria-label="Calls"
        onScroll={(event) => setTop(Math.floor(event.currentTarget.scrollTop / ROW))}
      >
        <table aria-rowcount={complete ? count + 1 : -1}>
          <thead>
            <tr aria-rowindex={1}>
              {view.columns.map((name) => (
                <th scope="col" key={name} class={`column-${name}`}>
                  {label(name)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {from > 0 && <Spacer rows={from} />}
            {visible.map((call, index) => (
              <tr key={identity(call)} aria-rowindex={from + index + 2}>
                {view.columns.map((name) => (
                  <td key={name} class={`column-${name}`}>
                    {name === "startTime" ? (
                      <button
                        type="button"
                        class="link"
                        onClick={() => change({ call: identity(call), at: call.startTime })}
                      >
                        {shortTime(call.startTime, view.tz)}
                      </button>
                    ) : (
                      <Cell call={call} name={name} />
                    )}
                  </td>
                ))}
              </tr>
            ))}
            {count > from + visible.length && <Spacer rows={count - from - visible.length} />}
          </tbody>
        </table>
      </section>
      <p class="note" role="status">
        {listed === null
          ? "Loading …"
          : !count && complete
            ? "No calls in this window."
            : complete
              ? `${count} calls`
              : `${count} calls loaded, scroll for more`}
      </p>
    </div>
  );
}

/** Stands for rows that are not in sight. The height is an attribute that the policy of the page allows. */
function Spacer({ rows }: { rows: number }) {
  const row = useRef<HTMLTableRowElement>(null);
  useEffect(() => {
    if (row.current) row.current.style.height = `${rows * ROW}px`;
  }, [rows]);
  return <tr ref={row} aria-hidden="true" />;
}

function Cell({ call, name }: { call: Call; name: string }) {
  const value = (call as unknown as Record<string, unknown>)[name];
  if (name === "result") return <span class={`result ${call.result}`}>{words(call.result)}</span>;
  if (name === "talkTimeSeconds" || name === "durationSeconds") return <>{duration(value as number | null)}</>;
  if (name === "ani" && value === null) return <span class="note">unknown</span>;
  return <>{value === null || value === undefined ? "" : words(String(value))}</>;
}
