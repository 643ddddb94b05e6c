// The change feed as server-sent events over fetch, which sends the credential as a header; EventSource cannot.

import { ApiError, addressOf, type Call, stream } from "./api";

export interface Changes {
  upserts: Call[];
  removes: { clientCode: string; id: string }[];
}

const none = (): Changes => ({ upserts: [], removes: [] });

export type FeedState = "connecting" | "live" | "waiting" | "refused";

interface Event {
  name: string;
  data: string;
  id: string | null;
}

/** Split a stream of server-sent events. Comments are events without a name. */
export async function* events(body: AsyncIterable<Uint8Array>): AsyncGenerator<Event> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const piece of body) {
    text += decoder.decode(piece, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const event: Event = { name: "", data: "", id: null };
      for (const line of block.split("\n")) {
        const [field, value] = [line.split(":", 1)[0], line.slice(line.indexOf(":") + 1).trimStart()];
        if (field === "event") event.name = value;
        else if (field === "data") event.data += value;
        else if (field === "id") event.id = value;
      }
      yield event;
    }
  }
}

/**
 * Follow the changes of clients until the signal is aborted. The first answer is the state that the copy begins with,
 * so it is not reported. Reconnects from the last token, 1 to 5 seconds after the end of a stream.
 */
export async function follow(
  clients: string[],
  start: string,
  signal: AbortSignal,
  onState: (state: FeedState) => void,
  onChanges: (changes: Changes) => void,
): Promise<void> {
  let token = "";
  let changes = none();
  let changed = false;
  while (!signal.aborted) {
    try {
      onState("connecting");
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (token) headers["Last-Event-ID"] = token;
      const query = token ? { client: clients } : { client: clients, start };
      const answer = await stream(addressOf("/changes", query), headers, signal);
      for await (const event of events(answer.body as unknown as AsyncIterable<Uint8Array>)) {
        if (event.name === "upsert") changes.upserts.push(JSON.parse(event.data).call);
        else if (event.name === "remove") changes.removes.push(JSON.parse(event.data));
        changed ||= event.name !== "" && event.name !== "up-to-date";
        if (event.name === "up-to-date") {
          onState("live");
          if (token && changed) onChanges(changes);
          changes = none();
          changed = false;
        }
        if (event.id) token = event.id;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status === 400 && token) token = "";
      else if (error instanceof ApiError && [400, 401, 403].includes(error.status)) return onState("refused");
    }
    onState("waiting");
    await new Promise((resolve) => setTimeout(resolve, 1000 + Math.random() * 4000));
  }
}
