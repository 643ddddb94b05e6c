import { useState } from "preact/hooks";
import type { Selection, View } from "./address";
import { api, BASE, unwrap } from "./api";
import type { paths } from "./contract";
import { duration, label, number, percent } from "./format";
import { ProblemPanel } from "./ProblemPanel";
import { useQuery } from "./query";
import { Scroll } from "./Scroll";

type GroupBy = NonNullable<NonNullable<paths["/calls/summary"]["get"]["parameters"]["query"]>["groupBy"]>;

const FIELDS = ["campaign", "did", "target", "client", "phoneType", "state", "areaCode"];
const FILTERS = new Set(["campaign", "did", "target", "phoneType"]); // fields that are filters of the list
const NOT_FIELDS = new Set(["result", "sales", "hourOfDay", "dayOfWeek", "hourOfWeek"]);

/** The dimensions of this gateway: those of the contract, and the fields that its operator has promoted. */
async function dimensions(signal: AbortSignal): Promise<string[]> {
  const contract = await (await fetch(new URL("openapi.json", BASE), { signal })).json();
  const found: string[] = contract.components?.schemas?.SummaryGroup?.enum ?? FIELDS;
  return found.filter((name) => !NOT_FIELDS.has(name));
}

/** The values of a field with the most calls. */
export function Top({
  view,
  change,
  selected,
}: {
  view: View;
  change: (part: Partial<View>) => void;
  selected: Selection;
}) {
  const [field, setField] = useState("campaign");
  const fields = useQuery("fields", dimensions);
  const query = useQuery(JSON.stringify([selected, field]), (signal) =>
    unwrap(
      api.GET("/calls/summary", { params: { query: { ...selected, groupBy: [field] as GroupBy, top: 20 } }, signal }),
    ),
  );
  const rows = [...(query.data?.data ?? [])].sort(
    (one, other) => Number(one.rest) - Number(other.rest) || other.calls - one.calls,
  );
  const choose = (value: string) => {
    if (field === "client") change({ clients: [value] });
    else change({ filters: { ...view.filters, [field]: value }, tab: "calls" });
  };
  return (
    <div aria-busy={query.loading}>
      <p>
        <label for="field">Calls by</label>{" "}
        <select id="field" value={field} onChange={(event) => setField(event.currentTarget.value)}>
          {(fields.data ?? FIELDS).map((name) => (
            <option key={name} value={name}>
              {label(name)}
            </option>
          ))}
        </select>
      </p>
      {query.problem && <ProblemPanel error={query.problem} onRetry={query.reload} />}
      <Scroll name={`Calls by ${label(field)}`}>
        <table>
          <thead>
            <tr>
              {[label(field), "Calls", "Answer rate", "Missed", "Callers", "Mean talk time"].map((name) => (
                <th scope="col" key={name}>
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => {
              const value = (row.group as Record<string, string | null> | null)?.[field]; // a promoted field is not in the contract
              const text = row.rest ? "All others" : value === null || value === undefined ? "(none)" : String(value);
              const filters =
                !row.rest && value !== null && value !== undefined && (field === "client" || FILTERS.has(field));
              return (
                <tr key={text}>
                  <th scope="row">
                    {filters ? (
                      <button type="button" class="link" onClick={() => choose(String(value))}>
                        {text}
                      </button>
                    ) : (
                      text
                    )}
                  </th>
                  <td>{number(row.calls)}</td>
                  <td>{percent(row.answerRate)}</td>
                  <td>{number(row.missed)}</td>
                  <td>{number(row.uniqueCallers)}</td>
                  <td>{duration(row.meanTalkTimeSeconds)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </Scroll>
      {query.data && !rows.length && <p class="note">No calls in this window.</p>}
    </div>
  );
}
