// Calls over time, stacked by result. Dragging over the bars zooms; the table below it does so by keyboard.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { View } from "./address";
import type { components } from "./contract";
import { bucket, number } from "./format";
import { type Query, usePainted } from "./query";
import { Scroll } from "./Scroll";

type Summary = components["schemas"]["CallSummary"];
type Interval = "hour" | "day" | "week" | "month";

const SERIES = [
  { name: "Connected", colour: "--connected", results: ["connected"] },
  { name: "Missed", colour: "--missed", results: ["busy", "no_answer", "abandoned"] },
  { name: "Other", colour: "--other", results: ["other"] },
];
const HEIGHT = 220; // pixels

interface Bucket {
  start: string;
  end: string; // of the last bucket: the end of the window
  counts: number[]; // by series
}

/** The buckets of a summary by interval and result, in the order of time. */
export function bucketsOf(summary: Summary): Bucket[] {
  const found = new Map<string, number[]>();
  for (const row of summary.data) {
    const counts = found.get(row.bucketStart) ?? SERIES.map(() => 0);
    const series = SERIES.findIndex(({ results }) => results.includes(String(row.group?.result)));
    if (series >= 0) counts[series] = (counts[series] ?? 0) + row.calls;
    found.set(row.bucketStart, counts);
  }
  const starts = [...found.keys()].sort();
  return starts.map((start, index) => ({
    start,
    end: starts[index + 1] ?? summary.meta.end,
    counts: found.get(start) ?? [],
  }));
}

interface Props {
  query: Query<Summary>;
  view: View;
  interval: Interval;
  change: (part: Partial<View>) => void;
}

export function Chart({ query, view, interval, change }: Props) {
  const buckets = query.data ? bucketsOf(query.data) : [];
  usePainted("chart", query.data !== null);
  const zoom = (start: string, end: string) => change({ range: null, start, end });
  return (
    <figure class="chart" aria-busy={query.loading}>
      <figcaption>
        Calls by {interval}
        <span class="legend">
          {SERIES.map(({ name, colour }) => (
            <span key={name} class={`key ${colour.slice(2)}`}>
              {name}
            </span>
          ))}
        </span>
      </figcaption>
      <Plot buckets={buckets} tz={view.tz} zoom={zoom} />
      <details>
        <summary>Show as a table</summary>
        <Scroll name="Calls over time">
          <table>
            <thead>
              <tr>
                <th scope="col">From</th>
                {SERIES.map(({ name }) => (
                  <th scope="col" key={name}>
                    {name}
                  </th>
                ))}
                <th scope="col">
                  <span class="hidden">Zoom</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {buckets.map(({ start, end, counts }) => (
                <tr key={start}>
                  <th scope="row">{bucket(start, interval, view.tz)}</th>
                  {counts.map((count, index) => (
                    <td key={SERIES[index]?.name}>{number(count)}</td>
                  ))}
                  <td>
                    <button type="button" class="plain small" onClick={() => zoom(start, end)}>
                      Zoom
                    </button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      </details>
    </figure>
  );
}

function Plot({ buckets, tz, zoom }: { buckets: Bucket[]; tz: string; zoom: (start: string, end: string) => void }) {
  const place = useRef<HTMLDivElement>(null);
  const shown = useRef(buckets);
  shown.current = buckets;
  const zoomTo = useRef(zoom);
  zoomTo.current = zoom;
  const drawn = JSON.stringify(buckets);
  // `drawn` stands for `buckets`
  useEffect(() => {
    const element = place.current;
    if (!element || !buckets.length) return;
    let plot = draw();
    function draw(): uPlot {
      const node = element as HTMLDivElement;
      const colours = getComputedStyle(node);
      const colour = (name: string) => colours.getPropertyValue(name).trim();
      // Stacked: the first series drawn is the sum of all, and each next one covers it.
      const stacks = SERIES.map((_, index) =>
        buckets.map(({ counts }) => counts.slice(index).reduce((sum, one) => sum + one, 0)),
      );
      const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
      return new uPlot(
        {
          width: node.clientWidth,
          height: HEIGHT,
          tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), tz),
          legend: { show: false },
          cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false } },
          scales: {
            x: { range: (_, low, high) => [low, high + widthOf(low, high)] },
            y: { range: (_, __, high) => [0, Math.max(high, 1) * 1.05] },
          },
          axes: [
            axis,
            {
              ...axis,
              size: 48,
              incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000],
            },
          ],
          series: [
            {},
            ...SERIES.map(({ name, colour: variable }) => ({
              label: name,
              fill: colour(variable),
              width: 0,
              points: { show: false },
              paths: uPlot.paths.bars?.({ size: [0.8, 60], align: 1 }) as uPlot.Series.PathBuilder,
            })),
          ],
          hooks: {
            setSelect: [
              (self) => {
                if (self.select.width < 4) return;
                const at = (left: number) =>
                  new Date(Math.round(self.posToVal(left, "x")) * 1000).toISOString().slice(0, 19);
                zoomTo.current(`${at(self.select.left)}Z`, `${at(self.select.left + self.select.width)}Z`);
              },
            ],
          },
        },
        [buckets.map(({ start }) => Date.parse(start) / 1000), ...stacks],
        node,
      );
    }
    function widthOf(low: number, high: number): number {
      return buckets.length > 1 ? (high - low) / (buckets.length - 1) : 3600;
    }
    const redraw = () => {
      plot.destroy();
      plot = draw();
    };
    const resized = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw);
    return () => {
      resized.disconnect();
      dark.removeEventListener("change", redraw);
      plot.destroy();
    };
  }, [drawn, tz]);
  return <div class="plot" ref={place} aria-hidden="true" />;
}
