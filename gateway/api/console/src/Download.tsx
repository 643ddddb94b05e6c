import { useRef, useState } from "preact/hooks";
import type { Selection, View } from "./address";
import { ApiError, addressOf, stream } from "./api";
import { number } from "./format";

const MEDIA_TYPES = { csv: "text/csv", ndjson: "application/x-ndjson" };
type Format = keyof typeof MEDIA_TYPES;

/** Download the calls of the view. Progress counts lines against the calls of the summary. */
export function Download({ view, selected, total }: { view: View; selected: Selection; total: number | null }) {
  const [lines, setLines] = useState<number | null>(null);
  const [error, setError] = useState("");
  const running = useRef<AbortController | null>(null);
  const download = async (format: Format) => {
    const controller = new AbortController();
    running.current = controller;
    setError("");
    setLines(0);
    try {
      const answer = await stream(addressOf("/calls", { ...selected, format }), {}, controller.signal);
      const pieces: BlobPart[] = [];
      let count = 0;
      for await (const piece of answer.body as unknown as AsyncIterable<Uint8Array<ArrayBuffer>>) {
        pieces.push(piece);
        for (const byte of piece) if (byte === 10) count += 1;
        setLines(count);
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(pieces, { type: MEDIA_TYPES[format] }));
      link.download = `calls-${view.range ?? view.start.slice(0, 10)}.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (failure) {
      if (!controller.signal.aborted)
        setError(failure instanceof ApiError ? failure.message : "The download broke off. Nothing was saved.");
    }
    running.current = null;
    setLines(null);
  };
  if (lines !== null) {
    return (
      <p class="download" role="status">
        <progress max={total || 1} {...(total ? { value: Math.min(lines, total) } : {})} aria-label="Download" />{" "}
        {number(lines)} lines
        <button type="button" class="plain small" onClick={() => running.current?.abort()}>
          Cancel
        </button>
      </p>
    );
  }
  return (
    <p class="download">
      <span class="hidden">Download the calls as </span>
      <button type="button" class="plain small" onClick={() => download("csv")}>
        Download CSV
      </button>
      <button type="button" class="plain small" onClick={() => download("ndjson")}>
        Download NDJSON
      </button>
      {error && (
        <span class="bad" role="alert">
          {error}
        </span>
      )}
    </p>
  );
}
