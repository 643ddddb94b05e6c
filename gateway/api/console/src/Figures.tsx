import type { components } from "./contract";
import { duration, number, percent } from "./format";
import { type Query, usePainted } from "./query";

type Totals = Omit<components["schemas"]["SummaryTotals"], "previous">;
type Figure = [
  name: string,
  value: (totals: Totals) => number | null,
  show: (value: number | null) => string,
  more: "good" | "bad" | "",
];

const FIGURES: Figure[] = [
  ["Calls", (totals) => totals.calls, number, ""],
  ["Answer rate", (totals) => totals.answerRate, percent, "good"],
  ["Missed", (totals) => totals.missed, number, "bad"],
  ["Callers", (totals) => totals.uniqueCallers, number, ""],
  ["New callers", (totals) => totals.newCallers, number, "good"],
  ["Wait, median", (totals) => totals.waitSeconds?.p50 ?? null, duration, "bad"],
  ["Mean talk time", (totals) => totals.meanTalkTimeSeconds, duration, ""],
];

/** The key figures of the view, each with its change against the period before. */
export function Figures({ query }: { query: Query<components["schemas"]["CallSummary"]> }) {
  const totals = query.data?.total;
  usePainted("figures", totals !== undefined);
  if (!totals)
    return (
      <p class="note" aria-busy={query.loading}>
        {query.loading ? "Loading the figures …" : ""}
      </p>
    );
  const before = totals.previous;
  return (
    <dl class="figures" aria-busy={query.loading}>
      {FIGURES.map(([name, value, show, more]) => {
        const [now, then] = [value(totals), before ? value(before) : null];
        return (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              {show(now)}
              {now !== null && then !== null && <Change now={now} then={then} show={show} more={more} />}
            </dd>
          </div>
        );
      })}
    </dl>
  );
}

function Change({
  now,
  then,
  show,
  more,
}: {
  now: number;
  then: number;
  show: (value: number) => string;
  more: string;
}) {
  const better = more === "good" ? now > then : now < then;
  const tone = more && now !== then ? (better ? "good" : "bad") : "";
  return (
    <span class={`change ${tone}`}>
      {now > then ? "▲" : now < then ? "▼" : "="} <span class="note">before:</span> {show(then)}
    </span>
  );
}
