import { useState } from "preact/hooks";
import type { Selection, View } from "./address";
import { api, unwrap } from "./api";
import { number, shortTime } from "./format";
import { ProblemPanel } from "./ProblemPanel";
import { useQuery } from "./query";
import { Scroll } from "./Scroll";

const STEP = 100; // rows a request

/** Callers who were missed and not reached since, to be called back. */
export function Missed({
  view,
  change,
  selected,
}: {
  view: View;
  change: (part: Partial<View>) => void;
  selected: Selection;
}) {
  const [pages, setPages] = useState(1);
  const query = useQuery(JSON.stringify([selected, pages]), async (signal) => {
    const limit = Math.min(STEP * pages, 1000);
    const { result: _, ...others } = selected; // missed calls have other results than connected
    return unwrap(api.GET("/calls/missed", { params: { query: { ...others, limit } }, signal }));
  });
  if (query.problem) return <ProblemPanel error={query.problem} onRetry={query.reload} />;
  const rows = query.data?.data ?? [];
  return (
    <div aria-busy={query.loading}>
      <p class="note">
        {query.data
          ? rows.length
            ? "Not reached since their last missed call, the latest first."
            : "Every caller has been reached."
          : "Loading …"}
      </p>
      <Scroll name="Missed callers">
        <table>
          <thead>
            <tr>
              {["Caller", "Last call", "Missed calls", "Client", "First missed"].map((name) => (
                <th scope="col" key={name}>
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map(({ ani, clientCode, lastCall, missedCalls, firstMissedAt }) => (
              <tr key={`${clientCode}/${ani}`}>
                <th scope="row">
                  <a href={`tel:${ani}`}>{ani}</a>
                </th>
                <td>
                  <button
                    type="button"
                    class="link"
                    onClick={() => change({ call: `${clientCode}/${lastCall.id}`, at: lastCall.startTime })}
                  >
                    {shortTime(lastCall.startTime, view.tz)}
                  </button>
                </td>
                <td>{number(missedCalls)}</td>
                <td>{clientCode}</td>
                <td>{shortTime(firstMissedAt, view.tz)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
      {query.data?.page.nextCursor && pages < 10 && (
        <button type="button" class="plain" onClick={() => setPages(pages + 1)}>
          Show more
        </button>
      )}
    </div>
  );
}
