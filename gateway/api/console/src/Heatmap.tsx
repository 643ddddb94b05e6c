import { useState } from "preact/hooks";
import type { Selection } from "./address";
import { api, unwrap } from "./api";
import { hour, number, percent, weekday } from "./format";
import { ProblemPanel } from "./ProblemPanel";
import { useQuery } from "./query";
import { Scroll } from "./Scroll";

const MEASURES = { calls: "Calls", missed: "Missed calls", answerRate: "Answer rate" } as const;
type Measure = keyof typeof MEASURES;
const LEVELS = 5; // shades

/** Calls by hour of the week, on the clock of the zone. */
export function Heatmap({ selected }: { selected: Selection }) {
  const [measure, setMeasure] = useState<Measure>("missed");
  const query = useQuery(JSON.stringify(selected), (signal) =>
    unwrap(api.GET("/calls/summary", { params: { query: { ...selected, groupBy: ["hourOfWeek"] } }, signal })),
  );
  if (query.problem) return <ProblemPanel error={query.problem} onRetry={query.reload} />;
  const cells = new Map((query.data?.data ?? []).map((row) => [Number(row.group?.hourOfWeek), row]));
  const value = (cell: number) => cells.get(cell)?.[measure] ?? null;
  const most = Math.max(...[...cells.keys()].map((cell) => value(cell) ?? 0), measure === "answerRate" ? 1 : 0);
  const show = (shown: number | null) => (measure === "answerRate" ? percent(shown) : number(shown ?? 0));
  const busiest = [...cells.keys()].reduce((best, cell) => ((value(cell) ?? 0) > (value(best) ?? 0) ? cell : best), 0);
  return (
    <div aria-busy={query.loading}>
      <p>
        <label for="measure">Show</label>{" "}
        <select id="measure" value={measure} onChange={(event) => setMeasure(event.currentTarget.value as Measure)}>
          {Object.entries(MEASURES).map(([name, text]) => (
            <option key={name} value={name}>
              {text}
            </option>
          ))}
        </select>
        {measure !== "answerRate" && (value(busiest) ?? 0) > 0 && (
          <span class="note">
            {" "}
            Most: {weekday(Math.floor(busiest / 24) + 1)}, {hour(busiest % 24)}, with {show(value(busiest))}.
          </span>
        )}
      </p>
      <Scroll name={`${MEASURES[measure]} by hour of the week`}>
        <table class="heat">
          <thead>
            <tr>
              <td />
              {range(24).map((one) => (
                <th scope="col" key={one}>
                  {hour(one)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {range(7).map((day) => (
              <tr key={day}>
                <th scope="row">{weekday(day + 1)}</th>
                {range(24).map((one) => {
                  const found = value(day * 24 + one);
                  const level = found && most ? Math.ceil((found / most) * LEVELS) : 0;
                  return (
                    <td key={one} class={`level-${level}`}>
                      {found ? show(found) : <span class="hidden">{show(found)}</span>}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </div>
  );
}

function range(count: number): number[] {
  return [...Array(count).keys()];
}
